"""Operators of the app, named after their outputs."""
