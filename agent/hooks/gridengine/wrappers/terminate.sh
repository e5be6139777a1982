#!/bin/sh
# Called by Grid Engine as the job's owner to end a job: terminate JOB_PID. A guest hears TERM first
# and may end in order; what is left of the job after ten seconds is killed.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
case $1 in '' | 0 | 1 | *[!0-9]*) exit 0 ;; esac
kill -s TERM -- "-$1" 2>/dev/null
kill -s CONT -- "-$1" 2>/dev/null
tries=0
while kill -s 0 -- "-$1" 2>/dev/null && [ $tries -lt 50 ]; do
    sleep 0.2
    tries=$((tries + 1))
done
kill -s KILL -- "-$1" 2>/dev/null
exit 0
