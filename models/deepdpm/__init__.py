"""DeepDPM: a Dirichlet-process mixture whose responsibilities are a network's."""
