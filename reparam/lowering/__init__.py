"""Lowering: inference-only forms of converted models, for one kind of machine each."""
