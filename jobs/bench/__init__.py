"""Benchmarks: both sides of a comparison measured in one run."""
