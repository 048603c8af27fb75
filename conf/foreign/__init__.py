"""Files that others wrote: one boundary around reading them, and the bounds of what they may ask for."""
