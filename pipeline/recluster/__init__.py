"""Rows that came and went since a generation, folded into it."""
