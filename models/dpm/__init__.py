"""Dirichlet-process mixtures of Gaussians."""
