"""``python -m train.evaluate``: held-out loss, answers and their scores; training uses the same code."""
