#!/bin/sh
# Slurm's Epilog, as root after a job. Always ends with 0: any other status drains the node, and a lease that
# could not be given back dies with its job.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
cd /
trap : HUP INT QUIT TERM USR1 USR2
case $SLURM_JOB_ID in '' | *[!0-9]*) exit 0 ;; esac
record=@STATE@/$SLURM_JOB_ID
[ -e "$record.prolog" ] || exit 0
rm -f "$record".*
[ -x @PYTHON@ ] || exit 0
env -i PATH="$PATH" LC_ALL=C.UTF-8 HOME=/ SLURM_JOB_ID="$SLURM_JOB_ID" \
    timeout -k 5 60 @PYTHON@ -I -m agent.cli.main --socket @SOCKET@ hooks slurm epilog >/dev/null 2>&1
exit 0
