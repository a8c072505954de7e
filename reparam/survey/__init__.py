"""Many architectures under one recipe: each in a bounded process of its own, its findings a line in a journal."""
