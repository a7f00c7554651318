"""From bytes in shards to RGB images, every member accounted for."""
