"""Looking into an image that nobody has approved yet, without ever mounting it.

``sandbox`` runs a tool of the host on an untrusted file; ``headers`` reads what a disk format says
of itself; ``disk`` finds the file systems; ``readers`` read files out of them; ``checks`` say what
the site wants to know. docs/formats/checks.md describes the outcome.
"""
