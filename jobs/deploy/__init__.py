"""Clusters that are yet to be: manifests for Kubernetes, Slurm and Ray's launcher, from the settings of a run."""
