"""The proof of the ledger's balances, and what may be put away once it is given.

`audit` recomputes every balance from the entries; `seal` does so for a closed epoch and keeps the
result as a checkpoint; `detach` and `prune` put away what lies behind one. All may run while the
ledger is in use, and each may be killed at any moment and run again.
"""

from penstock.quota.audit.auditor import audit, audit_dsn
from penstock.quota.audit.detaching import detach
from penstock.quota.audit.pruning import Pruned, prune
from penstock.quota.audit.report import FINDINGS_MAX, AuditReport, Busy, Check, Progress, quiet
from penstock.quota.audit.sealing import Sealed, seal

__all__ = [
    "FINDINGS_MAX",
    "AuditReport",
    "Busy",
    "Check",
    "Progress",
    "Pruned",
    "Sealed",
    "audit",
    "audit_dsn",
    "detach",
    "prune",
    "quiet",
    "seal",
]
