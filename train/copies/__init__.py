"""Copies of checkpoints in another place (``checkpoint.copy_to``), and a start from them on a fresh disk."""

from train.copies.copier import HELD, Copied, Copier, NotCopied, copier_of
from train.copies.home import bring_home

__all__ = ["HELD", "Copied", "Copier", "NotCopied", "bring_home", "copier_of"]
