"""Settings: their description, the check of every run, and the reference page."""

from .check import check_config

__all__ = ["check_config"]
