"""The parts of ``benchmarks/large.py``."""
