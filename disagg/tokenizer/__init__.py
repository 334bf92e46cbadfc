"""A model's text side: chat template, token ids, and text that is never broken."""
