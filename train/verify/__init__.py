"""``python -m train.verify`` proves, on the user's config, that a step is one function of its global batch."""
