#!/bin/sh
# Called by Grid Engine as the job's owner in place of the job: starter COMMAND ARGS...
# A job that names an image runs in a guest; another one as it would without this. Where the guest
# cannot be run it ends with 99 (run the job again) or 100 (hold it), never with the job's status.
if [ -z "$VM_IMG" ]; then
    case ${SGE_STARTER_SHELL_START_MODE:-}:$1 in
        unix_behavior:* | raw_exec:*) ;;
        *:*/job_scripts/*)
            case ${SGE_STARTER_USE_LOGIN_SHELL:-}:${SGE_STARTER_SHELL_PATH:-} in
                *:) ;;
                true:*/sh | true:*/bash | true:*/dash | true:*/ksh | true:*/zsh)
                    exec "$SGE_STARTER_SHELL_PATH" -l "$@" ;;
                *) exec "$SGE_STARTER_SHELL_PATH" "$@" ;;
            esac ;;
    esac
    exec "$@"
fi
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
case $SGE_TASK_ID in '' | *[!0-9]*) job=$JOB_ID.1 ;; *) job=$JOB_ID.$SGE_TASK_ID ;; esac
# Signals are for the child, which hands them on to the guest; this stays to say how it ended.
trap : HUP INT QUIT TERM USR1 USR2 ALRM XCPU XFSZ TSTP TTIN TTOU CONT
outcome=$TMPDIR/.distrib-outcome
rm -f "$outcome"
[ -x @PYTHON@ ] || echo "distrib: @PYTHON@ is not there" >&2
DISTRIB_OUTCOME=$outcome @PYTHON@ -I -m agent.cli.main --socket @SOCKET@ hooks gridengine starter "$@"
status=$?
case $status in
    99 | 100) ;;
    *)
        # Written when the job has ended, or was not to run any longer: then the status is its own.
        [ ! -s "$outcome" ] || exit $status
        echo "distrib: the guest of job $job could not be run or watched (status $status)" >&2
        status=99 ;;
esac
if [ $status = 99 ] && ! { [ -s "$outcome" ] && grep -q '"exit"' "$outcome"; }; then
    : 2>/dev/null >"$TMPDIR/.distrib-fault"
    count=0
    [ ! -f "@STATE@/$job.failures" ] || read -r count <"@STATE@/$job.failures"
    case $count in '' | *[!0-9]*) count=0 ;; esac
    if [ "$((count + 1))" -ge 3 ]; then
        echo "distrib: attempt $((count + 1)) of 3 of job $job failed here: it is held (qmod -cj $JOB_ID when mended)" >&2
        status=100
    fi
fi
exit $status
