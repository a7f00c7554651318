"""The one trainer, and the two seams of every fit: sums over workers, and checkpoints."""
