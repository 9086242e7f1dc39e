"""`python -I -S launch.py PARENT_PID COMMAND…`: becomes the command, and ends with its parent.

The kernel sends SIGTERM when the parent is gone, also after `kill -9`. Asked for here and not
between fork and exec of the parent: gRPC's threads there do not survive a plain fork.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent_pid: int, command: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:
        sys.exit("the parent ended before the kernel was told")
    try:
        os.execvp(command[0], command)  # noqa: S606 - the whole point
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
