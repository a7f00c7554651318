"""Images for training: an index of shards, an order of batches, readers, and views made ahead of the step."""
