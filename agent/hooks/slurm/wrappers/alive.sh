#!/bin/sh
# Whether a job still lives on this node: alive JOB. Ends with 0 where that cannot be told.
PATH=@SLURM@:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
case $1 in '' | *[!0-9]*) exit 0 ;; esac
pgrep -U 0 -f "^slurmstepd: \[$1\." >/dev/null 2>&1 && exit 0
# Between its prolog and its first step it has no process here, nor after its last one.
[ -z "$(find "@STATE@/$1.prolog" -mmin -5 2>/dev/null)" ] || exit 0
told=$(timeout 8 squeue -h -j "$1" -o '%A %T' 2>&1)
status=$?
# The number of an array is that of its last task too: all of its tasks are told.
[ $status != 0 ] || told=$(printf '%s\n' "$told" | sed -n "s/^$1 //p" | sort -u)
case $status:$told in
    0:RUNNING | 0:COMPLETING | 0:CONFIGURING | 0:SUSPENDED | 0:STOPPED | 0:SIGNALING | 0:STAGE_OUT) exit 0 ;;
    0:*) exit 1 ;;
    *'Invalid job id'*) exit 1 ;;
esac
exit 0
