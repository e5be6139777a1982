"""LSF: an elim that says what hosts hold, an esub that checks, a pre-exec and a job starter.

Written to the manual's interfaces (elim, esub, PRE_EXEC, JOB_STARTER), not run live:
docs/formats/hooks.md.
"""
