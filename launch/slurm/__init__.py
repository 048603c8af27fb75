"""Submitting a run to SLURM, and what its batch job does."""
