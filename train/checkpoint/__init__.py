"""Checkpoints in one layout for every ZeRO stage and number of ranks, published all or not at all."""

from train.checkpoint.commit import Published, save
from train.checkpoint.layout import Stored, latest_good, read_weights

__all__ = ["Published", "Stored", "latest_good", "read_weights", "save"]
