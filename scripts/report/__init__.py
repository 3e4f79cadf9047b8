"""The report of a run, for people: one HTML file that opens offline."""

from .writer import ReportWriter

__all__ = ["ReportWriter"]
