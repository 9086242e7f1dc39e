"""For all tests."""

import os
import signal

# Tests start processes (PostgreSQL, services) beside gRPC's threads. gRPC's fork handlers would run
# in the child between fork and exec, and may crash it there; no child of ours goes on using gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# Who starts the tests in the background (`&`, nohup) has them ignore these, and what a test starts
# would inherit that. A handler is heard by nobody else: a program begins with the default.
for _signal in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, lambda *_: None)
