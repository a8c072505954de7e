"""The command line: one file per verb, `render` for what people read, and the public API of `reparam` for the work."""
