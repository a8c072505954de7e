"""The verbs: each composes the rooms below in a few lines; `import reparam` exposes them lazily."""
