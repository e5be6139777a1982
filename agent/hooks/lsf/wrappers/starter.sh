#!/bin/sh
# LSF's JOB_STARTER of distrib, as the job's owner: starter COMMAND ARGS...
[ -n "$VM_IMG" ] || exec "$@"
[ -x @PYTHON@ ] || { echo "distrib: "@PYTHON@" is not there" >&2; exit 99; }
exec @PYTHON@ -I -m agent.cli.main --socket @SOCKET@ hooks lsf starter -- "$@"
