"""The settings: their description, the check of every run, the page made of it."""

from .check import check_config

__all__ = ["check_config"]
