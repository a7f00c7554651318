"""Passes of expect, sum, maximize over a table; assignments published as generations."""
