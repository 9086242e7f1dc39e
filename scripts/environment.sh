#!/usr/bin/env bash
# Makes a virtual environment from pinned, hashed requirements, and knows whether one is whole.
#
#   scripts/environment.sh VENV runtime LOCK [LOCK-without-dependencies…]
#
# A marker, named by the group ("runtime", "dev", "vllm") and holding the hash of its locks, is written
# last: with the right marker there is nothing to do. An install that failed or was cut off costs nothing
# that worked before: the next one goes on from there. One at a time: a lock beside the environment.
set -euo pipefail

venv=$1 group=$2 lock=$3
shift 3
bare_locks=("$@") # installed with --no-deps
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

marker=$venv/.penstock-$group
log=$venv/install-$group.log

fail() {
    printf 'penstock: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf '  → %s\n' "$2" >&2
    exit 1
}

# Ctrl-C reaches pip too, and a step that it ended is no fault of pip's.
interrupted() {
    trap '' INT TERM
    printf '\npenstock: Interrupted; the same command goes on\n' >&2
    exit 130
}

# Held until this script ends, however it ends. Without flock(1) (util-linux) two installs are not kept apart.
take_lock() {
    command -v flock >/dev/null || return 0
    exec {lock_fd}>"$venv.lock" || fail "$venv.lock cannot be written" "Is the disk full, or the folder read-only?"
    flock -n "$lock_fd" && return
    echo "another install of $venv is under way, waiting"
    flock "$lock_fd" || true # a file system without locks
}

find_python() {
    local name
    for name in ${PYTHON:-python3 python3.11 python3.12 python3.13}; do
        if command -v "$name" >/dev/null && "$name" -c \
            'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            printf '%s\n' "$name"
            return
        fi
    done
    fail "Python 3.11, 3.12 or 3.13 is needed; ${PYTHON:-python3} is not one of them or is missing" \
        "Install one (e.g. the package python3.11 with python3.11-venv), or say which: make PYTHON=/path/to/python3.11 …"
}

make_venv() {
    local python
    python=$(find_python)
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python has no venv module" "Install it (Debian, Ubuntu: the package python3-venv)."
    echo "Making $venv with $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv" || fail "the virtual environment $venv cannot be made" \
        "Is the disk full, or the folder read-only?"
}

# pip's output as a counter; all of it goes to the log.
progress() {
    local total=$1
    awk -v total="$total" -v log_file="$log" -v tty="$([ -t 1 ] && echo 1 || echo 0)" '
        { print >> log_file; fflush(log_file) }
        /^(Collecting|Requirement already satisfied:)/ {
            n++; name = ($1 == "Collecting") ? $2 : $4
            sub(/[=<>;(].*/, "", name)
            if (tty) printf "\r\033[K  %3d of about %d  %s", n, total, name
            else if (n % 25 == 0) printf "  %3d of about %d\n", n, total
            fflush()
        }
        /^Installing collected packages/ {
            if (tty) printf "\r\033[K"
            print "  unpacking …"; fflush()
        }
        END { if (tty) printf "\r\033[K" }'
}

pip_install() { # LOCK [pip's options…]
    local lock_file=$1
    shift
    echo "Installing $lock_file"
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
        --require-hashes --only-binary :all: "$@" -r "$lock_file" 2>&1 |
        progress "$(grep -c '^[A-Za-z0-9].*==' "$lock_file")" ||
        fail "pip could not install $lock_file: $(grep -m1 -E '^ERROR' "$log" || tail -n1 "$log")" \
            "All of its words: $log. Is the package index reachable, the disk full? Then again: the same command."
}

# pip writes INSTALLER when all else of a package is there: one without it was cut off while it was
# unpacked, and is unpacked again only where pip takes it for missing.
forget_cut_off() {
    local info
    for info in "$venv"/lib/python3.*/site-packages/*.dist-info; do
        [ ! -d "$info" ] || [ -e "$info/INSTALLER" ] || rm -rf "$info"
    done
}

digest=$(cat "$lock" "${bare_locks[@]:-/dev/null}" pyproject.toml | sha256sum | cut -d' ' -f1)
# Its scripts name the place where it was made: an environment that was moved or copied does not work.
works() { "$venv/bin/python" -c 'import pip' 2>/dev/null && "$venv/bin/pip" --version >/dev/null 2>&1; }
is_whole() { [ "$(cat "$marker" 2>/dev/null)" = "$digest" ] && works; }
if is_whole; then
    exit 0
fi

trap interrupted INT TERM
take_lock
if is_whole; then
    exit 0
fi

export PIP_ROOT_USER_ACTION=ignore
works || make_venv
rm -f "$marker"
forget_cut_off
: >"$log"
if [ "$group" = vllm ]; then
    pip_install "$lock" --no-deps # its lock is complete, and leaves out what vLLM's builds do not fit
else
    pip_install "$lock"
fi
for bare in "${bare_locks[@]}"; do
    pip_install "$bare" --no-deps
done
"$venv/bin/python" -m pip install --disable-pip-version-check --no-input --quiet --no-deps \
    --no-build-isolation --no-index --editable . >>"$log" 2>&1 ||
    fail "the package itself could not be installed: $(tail -n1 "$log")" "All of pip's words: $log"
printf '%s\n' "$digest" >"$marker.new"
mv "$marker.new" "$marker"
echo "$venv is ready ($group)."
