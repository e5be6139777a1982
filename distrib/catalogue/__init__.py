"""The catalogue: which images the site has taken in, approved and published.

An image comes in by a signed list of an authorised endorser (``intake``), is approved or denied by
the site (``approval``, ``denial``), and is told to the nodes in the signed site list
(``publisher``). What happened to it can be told afterwards (``history``).
"""
