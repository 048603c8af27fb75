"""Keeps secrets in, and texts that others wrote from acting."""
