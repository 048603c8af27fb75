"""The samples of every step, as pure functions of the seed, the mixture and the data."""
