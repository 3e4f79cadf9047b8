"""The cost of inference: `python -m benchmarks.inference`."""
