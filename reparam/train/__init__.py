"""Training and evaluation: data, objective, loop and records; one process here, many through the same engine."""
