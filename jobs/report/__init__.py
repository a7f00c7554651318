"""The web report: one HTML file."""
