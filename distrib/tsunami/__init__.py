"""Images over SSH: pieces between agents, chunks to hosts that have nothing but an sshd.

Formats: docs/formats/tsunami.md. ``schedule`` and ``protocol`` are pure; ``ssh`` is the adapter to
paramiko; ``serving`` is what a forced command runs; ``push`` feeds plain hosts.
"""
