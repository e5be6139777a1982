# What a push runs on a host that has nothing but sshd: POSIX sh, dd, head -c, and a SHA-512 tool.
# Orders, answers and files: docs/formats/tsunami.md. Sent anew by every push.
#   host.sh worker DIR DEST SIZE CHUNK_MIB EXPIRY    orders on standard input, until it ends
#   host.sh put DIR N SHA512                         a chunk on standard input
#   host.sh serve DIR                                one chunk on standard output; a key's command
#   host.sh clean DIR                                nothing is left
set -u
LC_ALL=C
export LC_ALL
umask 077

MIB=1048576
TAG=distrib-push
SILENCE_S=120

say() { printf '%s\n' "$*"; }
fault() {
    say "fault $*"
    exit 1
}
is_number() {
    case $1 in '' | *[!0-9]* | ??????????*) return 1 ;; esac
}

sha512() {
    if command -v sha512sum >/dev/null 2>&1; then sha512sum
    elif command -v shasum >/dev/null 2>&1; then shasum -a 512
    else openssl dgst -sha512 -r; fi | cut -d ' ' -f 1
}

read_meta() {
    size=0 mib=0
    read -r size mib <"$dir/meta" || :
}
# Chunk N of the file. Reading a regular file gives whole blocks.
chunk() { dd if="$dir/part" bs=$MIB skip=$(($1 * mib)) count="$mib" 2>/dev/null; }
chunk_bytes() {
    left=$((size - $1 * mib * MIB))
    [ "$left" -gt $((mib * MIB)) ] && left=$((mib * MIB))
    say "$left"
}
# Standard input to the place of chunk N, and never past its end, whatever a source sends.
keep() { head -c "$(chunk_bytes "$1")" | dd of="$dir/part" bs=$MIB seek=$(($1 * mib)) conv=notrunc 2>/dev/null; }
check() {
    if [ "$(chunk "$1" | sha512)" = "$2" ]; then
        : >"$dir/have/$1" && say "got $1"
    else
        rm -f "$dir/have/$1"
        say "bad $1 ${3:-wrong bytes}"
    fi
}

# -- roles ---------------------------------------------------------------------------------------

serve() {
    set -f
    # shellcheck disable=SC2086
    set -- ${SSH_ORIGINAL_COMMAND-}
    [ $# = 2 ] && [ "$1" = get ] && is_number "$2" && [ -f "$dir/have/$2" ] || {
        say "no such chunk here" >&2
        exit 65
    }
    read_meta
    chunk "$2"
}

put() {
    is_number "$1" || fault message-invalid "chunk $1"
    read_meta
    keep "$1" || fault storage-failed "writing chunk $1"
    check "$1" "$2"
}

fetch() { # N SHA512 PORT USER@ADDRESS
    why=$dir/why.$1
    {
        ssh -F /dev/null -T -x -i "$dir/key" -p "$3" \
            -o IdentitiesOnly=yes -o IdentityAgent=none -o BatchMode=yes -o ForwardAgent=no \
            -o StrictHostKeyChecking=yes -o UserKnownHostsFile="$dir/known_hosts" \
            -o GlobalKnownHostsFile=/dev/null -o UpdateHostKeys=no -o ConnectTimeout=10 \
            -o ServerAliveInterval=5 -o ServerAliveCountMax=3 -o LogLevel=ERROR \
            -o Ciphers=aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes128-ctr,aes256-ctr \
            ${ways:+-o ControlMaster=auto -o ControlPath="$ways/%C" -o ControlPersist=20} \
            "$4" "get $1" 2>"$why" </dev/null
        say $? >"$why.status"
    } | keep "$1"
    read -r status <"$why.status" || status=255
    told=$(tail -n 1 "$why" 2>/dev/null | tr -d '\r')
    rm -f "$why" "$why.status"
    if [ "$status" = 0 ]; then
        check "$1" "$2"
    else
        say "lost $1 ${told:-ssh ended with status $status}"
    fi
}

# -- the worker ----------------------------------------------------------------------------------

keys=$HOME/.ssh/authorized_keys
# One push at a time edits the file; a lock of a worker that was killed is broken after 10 s.
locked() {
    mkdir -p "$HOME/.ssh"
    tries=0
    until mkdir "$keys.$TAG" 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries -lt 10 ] || rmdir "$keys.$TAG" 2>/dev/null
        sleep 1
    done
    "$@"
    result=$?
    rmdir "$keys.$TAG" 2>/dev/null
    return $result
}
admit() {
    [ -f "$keys" ] || : >"$keys"
    retire_line
    [ -z "$(tail -c 1 "$keys")" ] || say >>"$keys"
    cat "$dir/line" >>"$keys"
}
retire_line() {
    [ -f "$keys" ] || return 0
    cp -p "$keys" "$keys.$TAG.new" || return 0
    grep -vF "host.sh' serve '$dir'" "$keys" >"$keys.$TAG.new"
    # 1: no line is left. What could not be written (a full disk) must not replace what lets people in.
    [ $? -lt 2 ] || { rm -f "$keys.$TAG.new"; return 0; }
    mv -f "$keys.$TAG.new" "$keys"
}
retire() {
    locked retire_line
    ways=$(cat "$dir/ways" 2>/dev/null)
    for master in "${ways:-/nowhere}"/*; do
        [ ! -S "$master" ] || ssh -F /dev/null -o ControlPath="$master" -O exit x 2>/dev/null
    done
    [ -z "$ways" ] || rm -rf "$ways"
    rm -f "$dir/key" "$dir/known_hosts" "$dir/line" "$dir/ways" "$dir"/why.* "$dir/beat"
}

leave() {
    trap '' HUP INT TERM PIPE
    trap - EXIT
    # What still fetches, and the watchdog: sshd made us the leader of a group of our own.
    kill -TERM 0 2>/dev/null
    retire
    rm -f "$dir/pid"
    if [ -f "$dir/done" ] || [ "$purge" = 1 ]; then rm -rf "$dir"; fi
    exit 0
}

begin() {
    command -v dd >/dev/null 2>&1 && command -v head >/dev/null 2>&1 || fault tool-missing "dd or head"
    [ "$(printf '' | sha512 2>/dev/null | cut -c 1-8)" = cf83e135 ] || fault tool-missing "sha512sum, shasum or openssl"
    # mv would put the file into it, under another name.
    [ ! -d "$dest" ] || fault storage-failed "$dest is a directory"
    say "$size $mib" >"$dir/meta" && mkdir -p "$dir/have" || fault storage-failed "$dir cannot be written to"
    if [ ! -f "$dir/part" ] || [ "$(wc -c <"$dir/part")" -ne "$size" ]; then
        rm -rf "$dir/have" "$dir/part"
        mkdir "$dir/have"
        if command -v fallocate >/dev/null 2>&1; then
            : >"$dir/part"
            fallocate -l "$size" "$dir/part" 2>"$dir/why.room" || {
                case $(cat "$dir/why.room") in *[Nn]o\ space*) rm -f "$dir/part"; fault no-space "$size bytes are not free in $dir" ;; esac
                rm -f "$dir/part"
            }
        fi
        # Where room cannot be taken, the file has its size at least.
        [ -f "$dir/part" ] || dd if=/dev/null of="$dir/part" bs=1 seek="$size" 2>/dev/null || fault storage-failed "$dir/part"
    fi
    locked admit || fault storage-failed "$keys"
    (cd "$dir/have" && for one in *; do [ "$one" = '*' ] || say "$one"; done) | while read -r one; do say "have $one"; done
    if command -v ssh >/dev/null 2>&1; then say "ready ssh"; else say "ready alone"; fi
}

finish() {
    found=$(sha512 <"$dir/part")
    [ "$found" = "$1" ] || {
        say "differs $found"
        return
    }
    sync "$dir/part" 2>/dev/null || sync
    # Others still fetch from `part`: the same file gets a second name, and that is renamed.
    ln -f "$dir/part" "$dir/whole" 2>/dev/null || cp "$dir/part" "$dir/whole" || fault storage-failed "$dest"
    chmod 644 "$dir/whole" && mv -f "$dir/whole" "$dest" || fault storage-failed "$dest"
    : >"$dir/done"
    say "done"
}

worker() {
    dest=$1 size=$2 mib=$3 purge=0
    if [ -f "$dir/pid" ] && kill -0 "$(cat "$dir/pid")" 2>/dev/null; then
        [ "$(cat "$dir/pid")" = $$ ] || fault conflict "another push of this file is under way on the host"
    fi
    say $$ >"$dir/pid" || fault storage-failed "$dir cannot be written to"
    trap leave EXIT HUP INT TERM PIPE
    say 0 >"$dir/beat"
    # One connection to each source, in a short place: names of sockets are.
    ways=$(mktemp -d 2>/dev/null) || ways=
    say "$ways" >"$dir/ways"
    # Ends a worker whose connection is gone without a word.
    (
        trap - EXIT
        was=
        while sleep $SILENCE_S; do
            is=$(cat "$dir/beat" 2>/dev/null)
            [ "$is" != "$was" ] || { kill -TERM $$; exit; }
            was=$is
        done
    ) </dev/null >/dev/null 2>&1 &
    beats=0
    while read -r order first second third fourth; do
        case $order in
            file)
                case $first in key | known_hosts | line) ;; *) fault message-invalid "file $first" ;; esac
                count=0
                while [ "$count" -lt "$second" ] && IFS= read -r text; do
                    say "$text"
                    count=$((count + 1))
                done >"$dir/$first" || fault storage-failed "$dir cannot be written to"
                ;;
            begin) begin ;;
            fetch) (trap - EXIT; fetch "$first" "$second" "$third" "$fourth") </dev/null & ;;
            verify) check "$first" "$second" ;;
            finish) finish "$first" ;;
            beat)
                beats=$((beats + 1))
                say $beats >"$dir/beat"
                say beat
                ;;
            end)
                [ "$first" != purge ] || purge=1
                retire
                say ended
                break
                ;;
            *) fault message-invalid "order $order" ;;
        esac
    done
}

clean() {
    if [ -f "$dir/pid" ]; then kill "$(cat "$dir/pid")" 2>/dev/null; fi
    retire
    rm -rf "$dir"
    say cleaned
}

role=$1 dir=$2
shift 2
cd / || exit 1
"$role" "$@"
