"""Mutants beside the ledger's batch: of the store, the router, the audit."""

from proofs.mutant import Mutant

_SQL = "quota/store/migrations/"
_STORE = "quota/store/ledger_store.py"

BESIDE = (
    Mutant(
        "a retry is promised that cannot succeed",
        "rate limits",
        "quota/refusals.py",
        "if facts.requested <= facts.limit and facts.resets_at_ms is not None:",
        "if facts.resets_at_ms is not None:",
    ),
    Mutant(
        "tokens are not what was used",
        "rate limits",
        _STORE,
        "*(o.amount_nano_usd, o.prompt_tokens + o.completion_tokens, None, None, None),",
        "*(o.amount_nano_usd, o.completion_tokens, None, None, None),",
    ),
    Mutant(
        "an id that two take at once is an error",
        "I3",
        _STORE,
        "    asyncpg.UniqueViolationError,\n",
        "",
        "concurrency",
    ),
    Mutant(
        "a reserve whose answer was lost is not voided",
        "router",
        "router/ledger.py",
        "if sent and not answered and request.pool != POOL_KIND_CACHE:",
        "if False:",
        "units",
    ),
    Mutant(
        "a settle is told once, and no more",
        "router",
        "router/ledger.py",
        "            await asyncio.sleep(backoff())\n\n    def _backoff",
        "            return False\n\n    def _backoff",
        "units",
    ),
    Mutant(
        "a cancelled stream is refunded",
        "router",
        "router/estimate.py",
        "completion = min(self._delivered_max, self._completion_bound)",
        "completion = 0",
        "units",
    ),
    Mutant(
        "what a reasoning model hides is free",
        "router",
        "router/estimate.py",
        "self._completion_bound if self._reasoning else completion",
        "completion",
        "units",
    ),
    Mutant(
        "many deltas are billed as one",
        "router",
        "router/estimate.py",
        "self._delivered_max += sum(",
        "self._delivered_max = sum(",
        "units",
    ),
    Mutant(
        "entries can be changed",
        "I12",
        _SQL + "0002_ledger.sql",
        "CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE ON entries\n",
        "CREATE TRIGGER entries_append_only BEFORE DELETE ON entries\n",
    ),
    Mutant(
        "a changed entry of a sealed epoch is not noticed",
        "I12",
        "quota/audit/digests.py",
        'if digest != row["digest"]:',
        "if False:",
        "audit",
    ),
    Mutant(
        "a changed adjustment is not noticed",
        "I12",
        "quota/audit/digests.py",
        'if (count, digest) == (sealed["adjustments"], sealed["adjustments_digest"]):',
        "if True:",
        "audit",
        first="audit_settings",
    ),
    Mutant(
        "a limit that no entry tells of is not noticed",
        "I12",
        "quota/audit/settings.py",
        "WHERE s.subject IS NULL OR s.account_id <> p.account_id OR d.told IS NOT NULL",
        "WHERE s.subject IS NULL OR s.account_id <> p.account_id",
        "audit",
        first="audit_settings",
    ),
    Mutant(
        "what comes while its organisation goes alone is forgotten",
        "queue",
        "quota/batcher.py",
        "        await self._apply(batch)\n        self._start()\n",
        "        await self._apply(batch)\n",
        "units",
    ),
)
