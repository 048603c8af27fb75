"""``python -m train.export``: a run's model as a folder that others load, and loading it again."""
