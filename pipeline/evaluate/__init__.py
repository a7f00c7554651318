"""Scores with and without labels."""
