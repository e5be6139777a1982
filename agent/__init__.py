"""The node agent: pulls, verifies, caches, leases and launches VM images on a worker node."""
