"""Grid Engine: submissions are checked, hosts say what they hold, jobs run in guests.

What crosses to Grid Engine (complexes, variables, exit statuses): docs/formats/hooks.md.
"""
