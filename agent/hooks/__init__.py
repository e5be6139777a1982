"""Thin hooks between batch systems and the agent."""
