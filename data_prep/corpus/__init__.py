"""The prepared corpus on disk: its files, its identity, and how it is found, copied and opened."""
