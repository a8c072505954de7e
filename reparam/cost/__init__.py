"""Counting and measuring: what a model computes, how long it takes, how large it is."""
