#!/bin/sh
# distrib: whether a job of LSF still lives: alive JOB[.INDEX]. Ends with 0 where that cannot be told.
PATH=@LSF@:/usr/sbin:/usr/bin:/sbin:/bin LSF_ENVDIR=@ENVDIR@
export PATH LSF_ENVDIR
case $1 in '' | *[!0-9.]* | *.*.*) exit 0 ;; esac
job=$1
case $job in *.*) job="${job%.*}[${job#*.}]" ;; esac
told=$(timeout 8 bjobs -noheader -o stat "$job" 2>&1)
case $?:$told in
    0:DONE* | 0:EXIT*) exit 1 ;;
    *'is not found'*) exit 1 ;;
    # A PRE_EXEC runs while its job pends; later a job that pends was taken from here.
    0:PEND* | 0:WAIT*) [ -n "$(find "@STATE@/$1" -mmin -5 2>/dev/null)" ] || exit 1 ;;
esac
exit 0
