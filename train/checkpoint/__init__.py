"""Checkpoints in one layout for every ZeRO stage and number of ranks, published all or not at all."""

from train.checkpoint.check import latest_good
from train.checkpoint.layout import Stored, read_weights
from train.checkpoint.saver import Failed, Outcome, Published, Saver, save

__all__ = ["Failed", "Outcome", "Published", "Saver", "Stored", "latest_good", "read_weights", "save"]
