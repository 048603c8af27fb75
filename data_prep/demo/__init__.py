"""The demo corpus: word tasks that a tiny model can truly learn, generated from our own word lists."""
