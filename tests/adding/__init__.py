"""New parts as a contributor would write them; tests/test_adding.py plants them in a copy of the tree and runs it."""
