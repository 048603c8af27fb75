"""What every node is asked before a run starts, and the verdict: the node that is not fit for it, and why."""
