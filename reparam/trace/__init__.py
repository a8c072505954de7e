"""Seeing a model: run it once without data, keep every operation with its operands and its place in the module tree."""
