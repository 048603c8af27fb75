"""Attempts of a run, one after another in one folder."""
