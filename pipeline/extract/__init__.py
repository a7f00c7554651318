"""From shards to embeddings on a Ray Data actor pool."""
