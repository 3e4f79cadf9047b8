"""The bundle on a built-in population: no data needed."""
