"""Kits that install the project on a machine without a network, made by ``python -m kit``."""
