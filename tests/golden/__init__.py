"""What a change must not change unnoticed: the files that tests compare with, and what writes them."""
