"""Arithmetic of whole numbers."""

from __future__ import annotations


def ceil_div(a: int, b: int) -> int:
    """The smallest whole number that is not below a / b, exactly, for b > 0: how many groups of b hold a things."""
    return -(-a // b)
