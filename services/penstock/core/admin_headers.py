"""Metadata of AdminService's calls: who changes something and why, whether he does, whether he had.

Texts are percent-encoded UTF-8 where they are no printable ASCII.
"""

from typing import Final

ACTOR: Final = "x-penstock-actor"
ACTOR_CHARACTERS_MAX = 128
REASON: Final = "x-penstock-reason"
REASON_CHARACTERS_MAX = 512
DRY_RUN: Final = "x-penstock-dry-run"
"""`1`, or left out."""
REPLAYED: Final = "x-penstock-replayed"
"""Trailing: `true` where the answer is what an earlier call of the same key made."""
