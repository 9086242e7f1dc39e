"""The rules of the ledger, each broken on purpose: what is written, and what is written instead.

A patch that does not apply exactly once is a fault of this list, and is told as one.
"""

from dataclasses import dataclass

_SQL = "quota/store/migrations/"
APPLY = _SQL + "0004_apply_batch.sql"
PATHS = _SQL + "0003_paths.sql"
ACCOUNTS = _SQL + "0001_accounts.sql"
STORE = "quota/store/ledger_store.py"

_LOCK = "SELECT * FROM buckets WHERE id = ANY (needed) ORDER BY id FOR NO KEY UPDATE"
_ONCE, _AGAIN = "unnest(known_rows) AS x", "reservations x WHERE x.id = ANY (ids || expired_ids)"
_KNOWN = f"FROM {_ONCE}\n    ),\n    moved AS ("
_REST = "rest := b_limits[p] - b_posted[p] - b_held[p] - b_suspense[p];"


@dataclass(frozen=True)
class Mutant:
    """`proof`: the one to try first; the others follow if it survives."""

    name: str
    invariant: str
    file: str
    old: str
    new: str
    proof: str = "scenarios"


MUTANTS = (
    Mutant("no lock", "I1", APPLY, _LOCK, _LOCK.removesuffix(" FOR NO KEY UPDATE"), "concurrency"),
    Mutant(
        "check outside the transaction: balances are read before the lock",
        "I1",
        APPLY,
        _LOCK + "\n        ) AS b",
        _LOCK.removesuffix(" FOR NO KEY UPDATE")
        + "\n        ) AS b JOIN (SELECT count(*) FROM (SELECT id FROM buckets"
        " WHERE id = ANY (needed) ORDER BY id FOR NO KEY UPDATE) AS w) AS locked ON true",
        "concurrency",
    ),
    Mutant("held is not counted", "I1", APPLY, _REST, _REST.replace(" - b_held[p]", "")),
    Mutant("suspense is not counted", "I8", APPLY, _REST, _REST.replace(" - b_suspense[p]", "")),
    Mutant("posted is not counted", "I1", APPLY, _REST, _REST.replace(" - b_posted[p]", "")),
    Mutant(
        "suspense of a grant is not counted",
        "I8",
        APPLY,
        "rest, b_limits[p] - b_posted[p] - b_held[p] - b_suspense[p] - b_lapsed[p]);",
        "rest, b_limits[p] - b_posted[p] - b_held[p] - b_lapsed[p]);",
    ),
    Mutant(
        "expiry is forgotten",
        "I8",
        APPLY,
        "WHERE r.state = 'held' AND r.expires_at <= at AND r.org_id = ANY (",
        "WHERE r.state = 'held' AND false AND r.org_id = ANY (",
    ),
    Mutant(
        "another organisation's expired hold keeps the pool",
        "I8",
        APPLY,
        "WHERE r.state = 'held' AND r.expires_at <= at AND r.pool_id IS NOT NULL",
        "WHERE false AND r.pool_id IS NOT NULL",
    ),
    Mutant(
        "an expired paid hold is released",
        "I8",
        APPLY,
        "-1 AS held_sign, (x.pool = 'paid')::integer AS suspense_sign",
        "-1 AS held_sign, 0 AS suspense_sign",
    ),
    Mutant(
        "an expired local hold goes to suspense",
        "I8",
        APPLY,
        "-1 AS held_sign, (x.pool = 'paid')::integer AS suspense_sign",
        "-1 AS held_sign, 1 AS suspense_sign",
    ),
    Mutant(
        "a late settle leaves the suspense",
        "I8",
        APPLY,
        "-(x.now = 'expired' AND x.pool = 'paid')::integer",
        "0",
    ),
    Mutant(
        "an expired hold still runs",
        "I8",
        APPLY,
        "CASE b.unit WHEN 'in_flight' THEN 0 ELSE s.suspense_sign * c.counts END",
        "s.suspense_sign * c.counts",
    ),
    Mutant(
        "a hold is extended though it has expired",
        "I9",
        APPLY,
        "WHEN o.op = 'extend' AND (x.state = 'expired' OR x.expires_at <= at)",
        "WHEN o.op = 'extend' AND (x.state = 'expired')",
    ),
    Mutant(
        "what was not used returns to the wrong grant",
        "I5",
        APPLY,
        "FOR i IN 1 .. cardinality(amounts) LOOP",
        "FOR i IN REVERSE cardinality(amounts) .. 1 LOOP",
    ),
    Mutant(
        "an overage spares the last slice",
        "I6",
        APPLY,
        "IF last[side] > 0 AND total[side] = amount THEN",
        "IF false THEN",
    ),
    Mutant(
        "an overage is the credit's though the budget shared the hold",
        "I6",
        APPLY,
        "IF last[side] > 0 AND total[side] = amount THEN",
        "IF last[side] > 0 THEN",
    ),
    Mutant(
        "a grant is used after its end",
        "I11",
        PATHS,
        "g.starts_at <= at AND at < g.expires_at",
        "g.starts_at <= at",
    ),
    Mutant(
        "a grant is used before its start",
        "I11",
        PATHS,
        "g.starts_at <= at AND at < g.expires_at",
        "at < g.expires_at",
    ),
    Mutant(
        "a commercial account uses a free tier's grant",
        "I11",
        PATHS,
        "(g.commercial_use OR l.side = 1 OR NOT d.commercial)",
        "true",
    ),
    Mutant(
        "the last-expiring grant is drained first",
        "I11",
        PATHS,
        "array_agg(b.id ORDER BY g.expires_at, g.id) FILTER (WHERE l.side = 0)",
        "array_agg(b.id ORDER BY g.expires_at DESC, g.id) FILTER (WHERE l.side = 0)",
    ),
    Mutant(
        "a grant lapses before its end",
        "I11",
        APPLY,
        "WHERE g.expires_at <= ledger_now()\n            AND",
        "WHERE",
    ),
    Mutant(
        "who prepays is not held to his credit",
        "I11",
        APPLY,
        "CONTINUE WHEN NOT prepaid[c];",
        "CONTINUE;",
    ),
    Mutant(
        "an extension is not counted",
        "I1",
        APPLY,
        "greatest(o.amount - x.amount, 0), greatest(o.tokens - x.tokens, 0), 0, false",
        "0, greatest(o.tokens - x.tokens, 0), 0, false",
    ),
    Mutant(
        "an extension counts in today's window",
        "I10",
        APPLY,
        "SELECT o.n, u.place, cardinality(routes) - u.place\n"
        "                + (row_number() OVER (ORDER BY o.n))::integer,",
        "SELECT o.n, u.place, 0,",
    ),
    Mutant(
        "a slice that came meanwhile is not locked",
        "I2",
        APPLY,
        "bool_and(r.bucket_ids || r.slice_ids <@ coalesce(b_ids, '{}'))",
        "bool_and(r.bucket_ids <@ coalesce(b_ids, '{}'))",
    ),
    Mutant("two looks at the reservations", "I2", APPLY, _KNOWN, _KNOWN.replace(_ONCE, _AGAIN)),
    Mutant("locks are waited for blindly", "I1", APPLY, "covered AND NOT waited", "covered"),
    Mutant(
        "a repeated reserve holds again",
        "I3",
        APPLY,
        "WHERE o.op = 'reserve' AND reasons[o.n] IS NULL AND fresh[o.n]",
        "WHERE o.op = 'reserve' AND reasons[o.n] IS NULL",
    ),
    Mutant(
        "a refusal is not remembered",
        "I3",
        APPLY,
        "'DEADLINE_EXCEEDED', 'KEY_UNKNOWN',\n",
        "'DEADLINE_EXCEEDED', 'KEY_UNKNOWN', 'BUDGET_EXCEEDED',\n",
    ),
    Mutant(
        "the fingerprint is ignored",
        "I3",
        APPLY,
        "THEN 'RESERVATION_ID_REUSED'",
        "THEN x.refusal_reason",
    ),
    Mutant(
        "an old id is taken as new",
        "I3",
        APPLY,
        "WHEN o.id_ms < moment_ms - horizon_ms THEN 'RESERVATION_ID_TOO_OLD'",
        "WHEN false THEN 'RESERVATION_ID_TOO_OLD'",
    ),
    Mutant(
        "a void that comes before its reserve is forgotten",
        "I3",
        APPLY,
        "WHERE o.op = 'void' AND fresh[o.n] AND reasons[o.n] IS NULL;",
        "WHERE o.op = 'void' AND false;",
    ),
    Mutant(
        "a settled attempt can be voided",
        "I4",
        APPLY,
        "WHERE o.op IN ('settle', 'void') AND x.now IN ('held', 'expired')",
        "WHERE o.op IN ('settle', 'void') AND (x.now IN ('held', 'expired')"
        " OR (o.op = 'void' AND x.now = 'settled'))",
    ),
    Mutant(
        "a repeated settle posts again",
        "I4",
        APPLY,
        "WHERE o.op IN ('settle', 'void') AND x.now IN ('held', 'expired')",
        "WHERE o.op IN ('settle', 'void') AND (x.now IN ('held', 'expired')"
        " OR (o.op = 'settle' AND x.now = 'settled'))",
    ),
    Mutant(
        "an unequal settle is answered as the first",
        "I4",
        APPLY,
        "ELSE 'RESERVATION_SETTLED'\n",
        "ELSE NULL\n",
    ),
    Mutant(
        "an overage is cut to what was held",
        "I6",
        APPLY,
        "x.amount, CASE o.op WHEN 'settle' THEN o.amount ELSE 0 END, x.tokens,",
        "x.amount, CASE o.op WHEN 'settle' THEN least(o.amount, x.amount) ELSE 0 END, x.tokens,",
    ),
    Mutant(
        "an overdrawn budget admits what costs nothing",
        "I6",
        APPLY,
        "IF need > rest AND (need > 0 OR t_requests[i] > 0) THEN",
        "IF need > rest AND need > 0 THEN",
    ),
    Mutant("a pool's limits are nobody's", "I2", PATHS, "(4, d.pool_id))", "(4, NULL::bigint))"),
    Mutant("a team's budgets are skipped", "I2", PATHS, "(2, d.team_id),", "(2, NULL::bigint),"),
    Mutant(
        "no budget means no limit",
        "I14",
        PATHS,
        "WHEN d.pool <> 'cache' AND w.pays IS NOT TRUE THEN",
        "WHEN false THEN",
    ),
    Mutant(
        "zero means unlimited",
        "I14",
        APPLY,
        "coalesce(g.amount, x.limit_amount)",
        "coalesce(g.amount, nullif(x.limit_amount, 0))",
    ),
    Mutant(
        "a month is never a new one",
        "I10",
        ACCOUNTS,
        "WHEN kind = 'total' THEN '-infinity'::timestamp",
        "WHEN kind IN ('total', 'month') THEN '-infinity'::timestamp",
    ),
    Mutant(
        "windows ignore their time zone",
        "I10",
        ACCOUNTS,
        "ELSE date_trunc(kind::text, at AT TIME ZONE time_zone)",
        "ELSE date_trunc(kind::text, at AT TIME ZONE 'UTC')",
    ),
    Mutant(
        "a reset job erases what was spent",
        "I10",
        APPLY,
        "    at := ledger_now();\n    LOOP\n",
        "    at := ledger_now();\n    UPDATE buckets SET posted = 0 WHERE budget_id IN (\n"
        "        SELECT x.id FROM unnest(operations) AS o JOIN budgets x"
        " ON x.account_id = o.key_id);\n    LOOP\n",
    ),
    Mutant(
        "a hit of the cache is not counted",
        "I1",
        APPLY,
        "b_posted[p] := b_posted[p] + 1;",
        "NULL;",
    ),
    Mutant(
        "a retry is promised that cannot succeed",
        "rate limits",
        "quota/refusals.py",
        "if facts.requested <= facts.limit and facts.resets_at_ms is not None:",
        "if facts.resets_at_ms is not None:",
    ),
    Mutant(
        "an extension is told to wait for a window that is not its own",
        "rate limits",
        APPLY,
        "IF t_requests[i] = 0 AND b_units[p] = 'tokens' THEN",
        "IF false THEN",
    ),
    Mutant(
        "who is refused by his own batch is not told when it frees up",
        "rate limits",
        APPLY,
        "IF b_units[p] = 'in_flight' AND t_requests[i] > 0 THEN",
        "IF false THEN",
    ),
    Mutant(
        "tokens are not what was used",
        "rate limits",
        STORE,
        "*(o.amount_nano_usd, o.prompt_tokens + o.completion_tokens, None, None, None),",
        "*(o.amount_nano_usd, o.completion_tokens, None, None, None),",
    ),
    Mutant(
        "an id that two take at once is an error",
        "I3",
        STORE,
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
        "router",
    ),
    Mutant(
        "a settle is told once, and no more",
        "router",
        "router/ledger.py",
        "            await asyncio.sleep(backoff())\n\n    def _backoff",
        "            return False\n\n    def _backoff",
        "router",
    ),
    Mutant(
        "a cancelled stream is refunded",
        "router",
        "router/estimate.py",
        "completion = min(self._delivered_max, self._completion_bound)",
        "completion = 0",
        "router",
    ),
    Mutant(
        "what a reasoning model hides is free",
        "router",
        "router/estimate.py",
        "self._completion_bound if self._reasoning else completion",
        "completion",
        "router",
    ),
    Mutant(
        "many deltas are billed as one",
        "router",
        "router/estimate.py",
        "self._delivered_max += sum(",
        "self._delivered_max = sum(",
        "router",
    ),
    Mutant(
        "entries can be changed",
        "I12",
        _SQL + "0002_ledger.sql",
        "CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE ON entries\n",
        "CREATE TRIGGER entries_append_only BEFORE DELETE ON entries\n",
    ),
)
