"""Delta tables, Parquet files and artifacts: the only code that knows their paths and schemas."""
