"""How near the physical limits distrib comes; each prints figures of one run side by side."""
