"""For all tests."""

import os

# Tests start processes (PostgreSQL, services) beside gRPC's threads. gRPC's fork handlers would run
# in the child between fork and exec, and may crash it there; no child of ours goes on using gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
