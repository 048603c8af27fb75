"""Measurements of speed, memory and scale, one command per file, compared with peers."""
