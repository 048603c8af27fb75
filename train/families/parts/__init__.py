"""The types that a family file fills in, and the blocks that several families share."""
