"""Tokenizers as Corral sees them: files, special tokens, fingerprint. The only room that knows transformers."""
