"""Models: their names, how they are built with and without memory, and where their weights come from."""
