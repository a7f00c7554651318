"""People and machines: commands, reports, benchmarks."""
