"""The proofs of the ledger: `python -m proofs` (with PYTHONPATH=tests) runs them all."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Processes are started beside gRPC's threads; none of them goes on using this one's channels.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
