"""Judges every step before its update, and goes back to a good checkpoint when too many are bad."""
