"""Slurm: submissions are checked, nodes say what they hold as features, jobs run in guests.

What crosses to Slurm (comment, features, exit statuses): docs/formats/hooks.md.
"""
