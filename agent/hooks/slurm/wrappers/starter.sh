#!/bin/sh
# What submit.lua made of a batch script runs this as the job's owner: starter SCRIPT ARGS... The job runs in
# the guest of its lease. Where that cannot be, it is queued again, held at the third time, or refused.
PATH=@SLURM@:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
# Signals are for the child, which hands them on to the guest; this stays to say how it ended.
trap : HUP INT QUIT TERM USR1 USR2 ALRM XCPU XFSZ TSTP TTIN TTOU CONT
job=$SLURM_JOB_ID
fault=@STATE@/$job.fault
status=99
if [ ! -e "@STATE@/$job.prolog" ]; then
    echo "distrib: the prolog of job $job did not run here (Prolog in slurm.conf)" >&2
elif [ -s "$fault" ]; then
    read -r status <"$fault"
    sed 1d "$fault" >&2
elif [ ! -x @PYTHON@ ]; then
    echo "distrib: @PYTHON@ is not there" >&2
else
    outcome=$(mktemp -t distrib.XXXXXX) || outcome=/dev/null
    DISTRIB_OUTCOME=$outcome @PYTHON@ -I -m agent.cli.main --socket @SOCKET@ hooks slurm starter "$@"
    status=$?
    # Written when the job has ended, or was not to run any longer: then the status is its own.
    if [ -s "$outcome" ]; then
        case $status:$(head -c 8 "$outcome") in
            99:'{"error"' | 100:'{"error"') ;;
            *)
                rm -f "$outcome"
                exit $status ;;
        esac
    fi
    rm -f "$outcome"
    case $status in
        99 | 100) ;;
        *)
            echo "distrib: the guest of job $job could not be run or watched (status $status)" >&2
            status=99 ;;
    esac
fi
[ "$status" = 99 ] || exit 100
tries=$((${SLURM_RESTART_COUNT:-0} + 1))
if [ "$tries" -ge 3 ]; then
    echo "distrib: attempt $tries of 3 of job $job failed on ${SLURMD_NODENAME:-this node}: it is held (scontrol release $job when mended)" >&2
    scontrol requeuehold "$job" >&2 || exit 99
else
    scontrol requeue "$job" >&2 || exit 99
fi
# It is ended from outside now.
sleep 60
exit 99
