"""What to write instead of what cannot be read: words, entries, interpolations, and names of other projects."""
