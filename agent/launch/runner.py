"""What a guest with cloud-init runs as user-data: the launcher's contract as a shell script. Pure.

The small guest's own init keeps the same contract (scripts/guest/init): output to the ports
``distrib.stdout`` and ``distrib.stderr``; to ``distrib.result`` the line ``ready``, then the exit
status alone, or ``failed REASON``.
"""

RUNNER = r"""#!/bin/sh
# Runs the job of the context disc, returns its output and status, powers off.
context=${DISTRIB_CONTEXT:-/run/distrib-context}
ports=${DISTRIB_PORTS:-/dev/virtio-ports}
poweroff=${DISTRIB_POWEROFF:-poweroff}
work=$(mktemp -d)

finish() {
    echo "$1" >&3
    sync
    $poweroff
    exit 0
}

exec 3>>"$ports/distrib.result"
if [ -z "$DISTRIB_CONTEXT" ]; then
    mkdir -p "$context"
    mount -t iso9660 -o ro LABEL=cidata "$context" || finish 'failed no-context-disc'
fi
if [ -f "$context/context.sh" ]; then
    set -a
    . "$context/context.sh"
    set +a
fi
if [ -f "$context/prolog.sh" ]; then
    sh "$context/prolog.sh" start </dev/null 3>&- || finish "failed prolog-$?"
fi
cp "$context/job.sh" "$work/job.sh" || finish 'failed no-job'
chmod 0755 "$work/job.sh"
# A port admits one opener; through pipes a job may open /dev/stdout and /dev/stderr itself.
mkfifo "$work/stdout" "$work/stderr"
cat "$work/stdout" >>"$ports/distrib.stdout" 3>&- &
out=$!
cat "$work/stderr" >>"$ports/distrib.stderr" 3>&- &
err=$!
echo ready >&3
(
    exec 3>&- </dev/null >"$work/stdout" 2>"$work/stderr"
    cd "$work" || exit 126
    [ ! -f "$context/environment" ] || . "$context/environment"
    [ ! -f "$context/args" ] || . "$context/args"
    read -r first <"$work/job.sh"
    case $first in
        '#!'*) exec "$work/job.sh" "$@" ;;
        *) exec sh "$work/job.sh" "$@" ;;
    esac
)
status=$?
# What the job left running may hold its output open: it gets five seconds to be read.
tries=0
while { kill -0 $out || kill -0 $err; } 2>/dev/null && [ $tries -lt 5 ]; do
    tries=$((tries + 1))
    sleep 1
done
[ ! -f "$context/epilog.sh" ] || sh "$context/epilog.sh" start </dev/null 3>&-
finish $status
"""
