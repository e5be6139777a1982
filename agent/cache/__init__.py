"""The block cache: stores that hold volumes, their records, leases and eviction."""
