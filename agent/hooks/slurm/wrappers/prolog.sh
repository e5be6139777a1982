#!/bin/sh
# Slurm's Prolog, as root before a job. Always ends with 0: any other status drains the node, and one bad
# image would drain the farm. What went wrong is written down, and the job's own script says it and ends.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
cd /
trap : HUP INT QUIT TERM USR1 USR2
case $SLURM_JOB_COMMENT in *vm_name=*) ;; *) exit 0 ;; esac
case $SLURM_JOB_ID in '' | *[!0-9]*) exit 0 ;; esac
record=@STATE@/$SLURM_JOB_ID
umask 022
mkdir -p @STATE@ 2>/dev/null
rm -f "$record".*
: 2>/dev/null >"$record.prolog"
if [ ! -x @PYTHON@ ]; then
    status=127 said="@PYTHON@ is not there"
else
    # Of its user's environment the job's nothing is passed on but what slurmd sets.
    said=$(env -i PATH="$PATH" LC_ALL=C.UTF-8 HOME=/ SLURM_JOB_ID="$SLURM_JOB_ID" SLURM_JOB_USER="$SLURM_JOB_USER" \
        SLURM_JOB_COMMENT="$SLURM_JOB_COMMENT" \
        timeout -k 5 80 @PYTHON@ -I -m agent.cli.main --socket @SOCKET@ hooks slurm prolog --alive @ALIVE@ 2>&1)
    status=$?
fi
[ $status != 0 ] || exit 0
case $status in
    99 | 100) ;;
    124 | 137) said="distrib: the prolog was ended: no answer in time, or killed" status=99 ;;
    *) said="distrib: the prolog ended with status $status: $said" status=99 ;;
esac
printf '%s\n%s\n' "$status" "$said" 2>/dev/null >"$record.fault"
exit 0
