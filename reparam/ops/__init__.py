"""Operators: one file each, trainable, multiplication-reduced replacements of dense modules."""
