"""From raw instruction files to a prepared corpus, and from the corpus to the rows of every training step."""
