"""Comparisons that measure both sides in one run."""
