"""Measurements of the bundle; nothing here is a test."""
