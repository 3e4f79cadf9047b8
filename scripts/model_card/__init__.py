"""Model card: what a fitted model is, in Markdown, from the figures of its file."""

from .writer import write_model_card

__all__ = ["write_model_card"]
