"""``python -m launch plan``: what train/plan finds, as a table, a sweep or a picture."""
