"""What inference costs: `python -m benchmarks.inference`."""
