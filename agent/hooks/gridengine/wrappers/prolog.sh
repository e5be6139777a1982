#!/bin/sh
# Called by Grid Engine as root before a job: prolog JOB OWNER.
# Whatever happens it ends with 0, with 99 (run the job again elsewhere) or with 100 (hold it): any
# other status puts the queue instance in state E, and one bad image would drain the farm.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
cd /
trap : HUP INT QUIT TERM USR1 USR2
# JOB.TASK, as sge_execd calls the job's directory (a job that is no array has task 1).
job=${SGE_JOB_SPOOL_DIR##*/}
case $1:$job in *[!0-9.:]* | :* | *:*.*.* | *: ) job=unknown ;; "$1:$1".?*) ;; *) job=unknown ;; esac
record=@STATE@/$job
# A job that names no image needs nothing of ours, whatever has become of it here.
[ -n "$VM_IMG" ] || exit 0

# COUNTER MOST: counts one more; ends with 100 once there are so many, else with 99.
again() {
    mkdir -p @STATE@ 2>/dev/null
    count=0
    [ ! -f "$record.$1" ] || read -r count <"$record.$1"
    case $count in '' | *[!0-9]*) count=0 ;; esac
    count=$((count + 1))
    echo "$count" 2>/dev/null >"$record.$1"
    # The epilog runs after this too, and must not take it for a job that has ended.
    : 2>/dev/null >"$record.now"
    if [ "$count" -ge "$2" ]; then
        rm -f "$record".*
        echo "distrib: attempt $count of $2 of job $job failed here: it is held (qmod -cj ${job%.*} when mended)" >&2
        exit 100
    fi
    exit 99
}

rm -f "$record.now"
if [ ! -x @PYTHON@ ]; then
    echo "distrib: the prolog of job $job cannot be run: @PYTHON@ is not there" >&2
    again failures 3
fi
# Of its user's environment the job's nothing is passed on but what Grid Engine and the JSV set.
env -i PATH="$PATH" LC_ALL=C.UTF-8 HOME=/ JOB_ID="$1" SGE_TASK_ID="${job#*.}" LOGNAME="$2" \
    VM_IMG="$VM_IMG" VM_MEM_MIB="$VM_MEM_MIB" NSLOTS="$NSLOTS" SGE_JOB_SPOOL_DIR="$SGE_JOB_SPOOL_DIR" \
    timeout -k 5 100 @PYTHON@ -I -m agent.cli.main --socket @SOCKET@ hooks gridengine prolog
status=$?
case $status in
    0 | 100) exit $status ;;
    98) again waits 20 ;;
    99) ;;
    124 | 137) echo "distrib: the prolog of job $job was ended: no answer in time, or killed" >&2 ;;
    126 | 127) echo "distrib: the prolog of job $job cannot be run (status $status)" >&2 ;;
    *) echo "distrib: the prolog of job $job ended with status $status" >&2 ;;
esac
again failures 3
