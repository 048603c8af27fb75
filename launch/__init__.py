"""Starts runs: composes, validates, plans, prepares, dispatches and supervises; never imports torch."""
