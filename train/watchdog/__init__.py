"""Beside the ranks of every node, a process that notices when one of them dies or hangs, and ends the others."""
