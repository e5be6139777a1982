#!/bin/sh
# LSF's POST_EXEC of distrib: gives the job's lease back. Always ends with 0: a lease that could not be given
# back dies with its job.
PATH=@LSF@:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
cd /
[ -n "$VM_IMG" ] || exit 0
[ -x @PYTHON@ ] || exit 0
env -i PATH="$PATH" LC_ALL=C.UTF-8 HOME=/ LSB_JOBID="$LSB_JOBID" LSB_JOBINDEX="$LSB_JOBINDEX" \
    timeout -k 5 60 @PYTHON@ -I -m agent.cli.main --socket @SOCKET@ hooks lsf post >/dev/null 2>&1
exit 0
