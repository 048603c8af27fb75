"""Conversations to samples: templates, styles and exemplars, then token ids and which of them are targets."""
