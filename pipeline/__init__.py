"""Data at scale: shards, tables, Ray."""
