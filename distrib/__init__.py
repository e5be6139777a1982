"""Cluster-wide distribution of trusted VM images: the head node's side and the shared core."""
