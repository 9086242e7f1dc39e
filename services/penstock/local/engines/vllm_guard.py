"""Ends vLLM's child processes when the replica is gone, also after `kill -9`.

vLLM's children do not notice the death of the process that started them: they would hold the
model's memory for ever. vLLM imports this module in its workers, as `worker_extension_cls`.
"""

import os
import select
import signal
import threading

PARENT_VARIABLE = "PENSTOCK_VLLM_PARENT"
"""Process id of the replica; set before the children are started."""


class Guard:
    """Mixed into vLLM's worker class, to which it adds nothing: importing it is what counts."""


def _watch(replica: int, engine_core: int) -> None:
    """Waits for the replica's end, then ends the engine's processes."""
    try:
        handle = os.pidfd_open(replica)
    except ProcessLookupError:
        pass
    else:
        # Readable when the process has ended; no polling.
        select.select([handle], [], [])
    # The worker's parent is vLLM's scheduler process, unless that is gone or is the replica itself.
    if os.getppid() == engine_core != replica:
        os.kill(engine_core, signal.SIGKILL)
    os._exit(1)


def _begin() -> None:
    replica = int(os.environ.get(PARENT_VARIABLE, "0"))
    if replica and replica != os.getpid():
        arguments = (replica, os.getppid())
        threading.Thread(target=_watch, args=arguments, name="vllm-guard", daemon=True).start()


_begin()
