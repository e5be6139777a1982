#!/bin/sh
# LSF's PRE_EXEC of distrib: 0; 1 has the job pend again (a fault of the host); 99 has it exit (refused).
# As root (LSB_PRE_POST_EXEC_USER of lsf.sudoers) it takes the job's lease, else it waits for the image only.
PATH=@LSF@:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
cd /
[ -n "$VM_IMG" ] || exit 0
[ -x @PYTHON@ ] || exit 1
case $LSB_JOBID:${LSB_JOBINDEX:-0} in
    *[!0-9:]* | :* | *: | *:*:*) exit 99 ;;
    *:0) job=$LSB_JOBID ;;
    *) job="$LSB_JOBID[$LSB_JOBINDEX]" ;;
esac
# Of its user's environment the job's nothing is passed on but what LSF and the esub set.
said=$(env -i PATH="$PATH" LC_ALL=C.UTF-8 HOME=/ LSF_ENVDIR=@ENVDIR@ LSB_JOBID="$LSB_JOBID" LSB_JOBINDEX="$LSB_JOBINDEX" \
    VM_IMG="$VM_IMG" \
    timeout -k 5 170 @PYTHON@ -I -m agent.cli.main --socket @SOCKET@ hooks lsf pre --alive @ALIVE@ 2>&1)
status=$?
[ $status != 0 ] || exit 0
# LSF lets a PRE_EXEC write nowhere: its user reads it with bjobs -l, or bread.
LSF_ENVDIR=@ENVDIR@ timeout 10 bpost -d "$(printf '%.500s' "$said")" "$job" >/dev/null 2>&1 </dev/null
[ $status != 99 ] || exit 99
exit 1
