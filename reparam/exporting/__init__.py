"""Formats in which a model leaves reparam; a new one is one file."""
