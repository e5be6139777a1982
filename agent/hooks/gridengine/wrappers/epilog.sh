#!/bin/sh
# Called by Grid Engine as root after a job: epilog JOB.
# Always ends with 0: what a job has done is done, and a lease that could not be given back dies with
# the job's shepherd.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
cd /
trap : HUP INT QUIT TERM USR1 USR2
# JOB.TASK, as sge_execd calls the job's directory (a job that is no array has task 1).
job=${SGE_JOB_SPOOL_DIR##*/}
case $1:$job in *[!0-9.:]* | :* | *:*.*.* | *: ) job=unknown ;; "$1:$1".?*) ;; *) job=unknown ;; esac
record=@STATE@/$job
[ -n "$VM_IMG" ] || exit 0

if [ -e "$record.now" ]; then
    # The prolog failed, and has counted that.
    rm -f "$record.now"
elif [ -n "$TMPDIR" ] && [ -e "$TMPDIR/.distrib-fault" ]; then
    mkdir -p @STATE@ 2>/dev/null
    count=0
    [ ! -f "$record.failures" ] || read -r count <"$record.failures"
    case $count in '' | *[!0-9]*) count=0 ;; esac
    count=$((count + 1))
    echo "$count" 2>/dev/null >"$record.failures"
    # Held by now, or gone on: it begins anew when it comes again.
    [ "$count" -lt 3 ] || rm -f "$record".*
else
    rm -f "$record".*
fi
if [ ! -x @PYTHON@ ]; then
    echo "distrib: the epilog of job $job cannot be run: @PYTHON@ is not there" >&2
    exit 0
fi
env -i PATH="$PATH" LC_ALL=C.UTF-8 HOME=/ JOB_ID="$1" SGE_TASK_ID="${job#*.}" \
    VM_IMG="$VM_IMG" SGE_JOB_SPOOL_DIR="$SGE_JOB_SPOOL_DIR" \
    timeout -k 5 60 @PYTHON@ -I -m agent.cli.main --socket @SOCKET@ hooks gridengine epilog ||
    echo "distrib: the lease of job $job will be taken back when its shepherd has gone" >&2
exit 0
