"""How conversations are written out: Alpaca's prompts, plain text, or a tokenizer's chat template."""
