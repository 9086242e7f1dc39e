#!/usr/bin/env bash
# Ends well where no Penstock runs on a state folder; else says what to do. For when Penstock's own
# program is not there to ask: `penstock up` holds a lock as long as it runs, and a record of what it
# started stays behind where it was killed.
#
#   scripts/at_rest.sh STATE
set -euo pipefail

state=$1
lock=$state/up.lock

fail() {
    printf 'penstock: %s\n  → %s\n' "$1" "$2" >&2
    exit 1
}

is_free() {
    if command -v flock >/dev/null; then
        flock --nonblock "$lock" true
    else
        python3 -c 'import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)' \
            "$lock" 2>/dev/null
    fi
}

[ -e "$lock" ] || exit 0
remedy="\`make down\` ends it; where .venv is gone, put it back, or \`make env\` first."
is_free || fail "Penstock runs on $state" "$remedy"
[ ! -e "$state/run/processes.json" ] || fail "a Penstock on $state was killed and may have left processes" "$remedy"
