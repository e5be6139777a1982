"""What a site wants to know of an image before it approves it: one module a check.

A new check is a module with a class of the shape ``subject.Check``, and a line in ``table``.
"""
