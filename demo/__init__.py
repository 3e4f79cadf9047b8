"""Demo of the bundle on a built-in population."""
