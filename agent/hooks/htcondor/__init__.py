"""HTCondor: machine ads of what a node holds, a hook before a job, a wrapper around it.

Written to the manual's interfaces (startd cron, job hooks, USER_JOB_WRAPPER), not run live:
docs/formats/hooks.md.
"""
