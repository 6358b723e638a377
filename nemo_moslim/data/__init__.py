"""Data preparation: sources, row checks, the embedded world, tokenizers, and readers of prepared files."""
