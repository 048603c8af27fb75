"""What to do about rows that do not fit: which format would read them, and the way out for every reason."""
