"""What became of clusters and images from one generation to another."""
