"""``python -m train.chat``: talk to an exported model."""
