"""Events to handlers: queued in the database, in order for each handler, until they are taken.

``queue`` (what is due, how it went), ``environment`` (what a handler sees), ``process`` and
``warden`` (running one), ``delivery`` (the loop), ``replay`` (what is there, told once more).
"""
