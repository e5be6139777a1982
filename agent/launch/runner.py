"""What runs the job in a guest: the launcher's contract as a shell script. Pure.

cloud-init runs it as user-data, OpenNebula's contextualisation as start script, a HEPiX guest as
``epilog.sh``, the last script of its boot. To the ports: the job's output; to ``result`` the line
``ready``, then the exit status alone, or ``failed REASON``; to ``files`` the job's directory as a
tar, if it came with one. From the port ``control``: names of signals, one a line.
"""

RUNNER = r"""#!/bin/sh
# Runs the job of the context disc, returns its output and status, powers off.
context=${DISTRIB_CONTEXT:-/run/distrib-context}
ports=${DISTRIB_PORTS:-/dev/virtio-ports}
poweroff=${DISTRIB_POWEROFF:-poweroff}
run=${DISTRIB_RUN:-/run}
control=
# Whoever contextualises the guest first starts it; the others find it running.
mkdir "$run/distrib-runner" 2>/dev/null || exit 0
work=$(mktemp -d)

# Xen has no virtio-serial: further consoles or serial lines, in the same order.
port() {
    for at in "$ports/distrib.$1" "/dev/hvc$2" "/dev/ttyS$2"; do
        [ -e "$at" ] || continue
        [ "$at" = "$ports/distrib.$1" ] || stty -F "$at" raw -echo
        echo "$at"
        return
    done
    echo /dev/null
}

finish() {
    # The host looks at the machine's counters a last time, and says when it has.
    sync
    [ -z "$control" ] || kill "$control" 2>/dev/null
    echo "$1" >&3
    tries=0
    while [ -n "$control" ] && [ $tries -lt 50 ]; do
        if read -r word <&4; then
            [ "$word" != END ] || break
        else
            tries=$((tries + 1))
            sleep 0.02
        fi
    done
    $poweroff
    exit 0
}

site() {
    [ -f "$context/$1" ] || return 0
    sh "$context/$1" "$2" </dev/null 3>&- 4<&-
}

# The job's own script for its guest; what it says is told with the job's errors.
own() {
    [ -f "$context/job-context.sh" ] || return 0
    (
        exec 3>&- 4<&- </dev/null >>"$work/said" 2>&1
        cd "$work" || exit 1
        [ ! -f "$context/environment" ] || . "$context/environment"
        [ ! -f "$context/context.sh" ] || { set -a; . "$context/context.sh"; set +a; }
        cp "$context/job-context.sh" "$work/job-context.sh" || exit 1
        chmod 0755 "$work/job-context.sh"
        read -r first <"$work/job-context.sh"
        case $first in
            '#!'*) exec "$work/job-context.sh" "$1" ;;
            *) exec sh "$work/job-context.sh" "$1" ;;
        esac
    )
}

exec 3>>"$(port result 3)"
if [ ! -f "$context/job.sh" ]; then
    mkdir -p "$context"
    mount -t iso9660 -o ro LABEL=cidata "$context" || finish 'failed no-context-disc'
fi
if [ -f "$context/context.sh" ]; then
    set -a
    . "$context/context.sh"
    set +a
fi
# A HEPiX guest has run it at its boot, and kept how it ended.
if [ -f "$run/distrib-prolog" ]; then
    status=$(cat "$run/distrib-prolog")
else
    site prolog.sh start
    status=$?
fi
[ "$status" = 0 ] || finish "failed prolog-$status"
own start
context_status=$?
# What the site does it does last.
site site-epilog.sh start || finish "failed epilog-$?"

cp "$context/job.sh" "$work/job.sh" || finish 'failed no-job'
chmod 0755 "$work/job.sh"
directory=${DISTRIB_DIRECTORY:-$work}
if [ -f "$context/files.tar" ] || [ -f "$context/share" ]; then
    directory=$work/directory
    mkdir "$directory"
fi
if [ -f "$context/files.tar" ]; then
    tar -x -f "$context/files.tar" -C "$directory" || finish 'failed no-room-for-files'
fi
if [ -f "$context/share" ]; then
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 "$(cat "$context/share")" \
        "$directory" || finish 'failed no-share'
fi
stdin=/dev/null
[ ! -f "$context/stdin" ] || stdin=$context/stdin
cat >"$work/run" <<'RUN'
exec 3>&- <"$1" >"$2/stdout" 2>"$2/stderr"
work=$2 context=$3
[ ! -s "$work/said" ] || cat "$work/said" >&2
if [ "$5" != 0 ]; then
    echo "the job's context script ended with $5: the job is not run" >&2
    exit "$5"
fi
cd "$4" || exit 126
[ ! -f "$context/environment" ] || . "$context/environment"
# The site's word is the last.
[ ! -f "$context/context.sh" ] || { set -a; . "$context/context.sh"; set +a; }
[ ! -f "$context/args" ] || . "$context/args"
read -r first <"$work/job.sh"
case $first in
    '#!'*) exec "$work/job.sh" "$@" ;;
    *) exec sh "$work/job.sh" "$@" ;;
esac
RUN
# A port admits one opener; through pipes a job may open /dev/stdout and /dev/stderr itself.
mkfifo "$work/stdout" "$work/stderr"
cat "$work/stdout" >>"$(port stdout 1)" 3>&- &
out=$!
cat "$work/stderr" >>"$(port stderr 2)" 3>&- &
err=$!
echo ready >&3
# A session of its own, so that a signal reaches all of the job and nothing else.
setsid sh "$work/run" "$stdin" "$work" "$context" "$directory" $context_status &
job=$!
if [ -e "$ports/distrib.control" ]; then
    # It admits one opener too.
    exec 4<"$ports/distrib.control"
    (
        exec 3>&-
        while :; do
            if read -r word <&4; then
                case $word in
                    TERM | HUP | XCPU | USR1 | USR2) kill -s "$word" -- "-$job" ;;
                esac
            else
                # Nobody has opened the other end.
                sleep 0.2
            fi
        done
    ) &
    control=$!
fi
wait $job
status=$?
# What the job left running may hold its output open: it gets five seconds to be read.
tries=0
while { kill -0 $out || kill -0 $err; } 2>/dev/null && [ $tries -lt 25 ]; do
    tries=$((tries + 1))
    sleep 0.2
done
[ $context_status != 0 ] || own stop
if [ -f "$context/files.tar" ]; then
    tar -c -C "$directory" . >>"$(port files 4)" 2>/dev/null || finish 'failed files-not-returned'
fi
site site-epilog.sh stop
site prolog.sh stop
finish $status
"""

HEPIX_EPILOG = r"""#!/bin/sh
# The last script of a HEPiX guest's boot: it runs the job.
[ "${1:-start}" = start ] || exit 0
context=$(dirname "$0")
[ ! -f "$context/job.sh" ] || { DISTRIB_CONTEXT=$context; export DISTRIB_CONTEXT; }
if [ ! -f "$context/runner.sh" ]; then
    context=/run/distrib-context
    mkdir -p "$context"
    mount -t iso9660 -o ro LABEL=cidata "$context" || exit 1
fi
exec sh "$context/runner.sh"
"""

HEPIX_PROLOG = b"""#!/bin/sh
[ "${1:-}" != start ] || [ -e /run/distrib-runner ] || trap 'echo $? >/run/distrib-prolog' EXIT
"""
"""Put before the site's: a HEPiX guest does not tell how its prolog ended."""
