"""What takes records away, or mends them: cleaning rules, duplicates, overlap with evaluation sets."""
