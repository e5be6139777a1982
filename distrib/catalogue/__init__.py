"""The catalogue: which images the site has taken in, approved and published.

An image comes in by a signed list of an authorised endorser (``intake``), is approved or denied by
the site (``approval``), and is told to the nodes in the signed site list (``publisher``).
"""
