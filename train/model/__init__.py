"""Builds the model of a run: finds, loads and quantizes its weights, and sets recomputation and kernels."""
