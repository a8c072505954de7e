"""Recipes: data that says which operator goes where, in which order, and how it is fine-tuned."""
