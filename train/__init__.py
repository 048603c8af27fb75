"""The run: one exact optimizer step after another, on any number of ranks."""
