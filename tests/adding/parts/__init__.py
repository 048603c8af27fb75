"""New parts as files of their own; some are pieces that go into a file that is there."""
