"""One process of a run among others: the run folder it owns, the signals it hears, how it ends."""
