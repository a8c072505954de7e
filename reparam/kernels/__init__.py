"""Numerics that torch has no fast form of; they know tensors and sizes, neither operators nor models."""
