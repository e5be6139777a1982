"""``distrib-agent doctor``."""
