"""The tests; they mirror `scripts/`."""
