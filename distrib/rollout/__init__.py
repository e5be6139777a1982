"""Rollouts: who is meant, where everybody stands, and what each node is told."""
