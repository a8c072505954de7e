"""Finders: one function per kind, from the record of a run to the sites that rules can pick."""
