"""The rules of the ledger, each broken on purpose: what is written, and what is written instead.

A patch that does not apply exactly once is a fault of this list, and is told as one.
"""

from proofs.mutant import Mutant
from proofs.mutants_beside import BESIDE

_SQL = "quota/store/migrations/"
APPLY = _SQL + "0004_apply_batch.sql"
PARTS = _SQL + "0003_batch_parts.sql"
ACCOUNTS = _SQL + "0001_accounts.sql"
CHANGES = "quota/store/changes.py"
GRANTS = "quota/store/grant_store.py"

_LOCK = " FOR NO KEY UPDATE\n        ) AS b\n"
_JOINS = (
    "        LEFT JOIN budgets x ON x.id = b.budget_id\n"
    "        LEFT JOIN grants g ON g.id = b.grant_id;\n"
)
_REST = "rest := b_limits[p] - b_posted[p] - b_held[p] - b_suspense[p];"
_ENDS = "CONTINUE WHEN x.id IS NULL OR x.state NOT IN ('held', 'expired');"
_ENDS_TOO = (
    "CONTINUE WHEN x.id IS NULL OR NOT (x.state IN ('held', 'expired')"
    " OR (x.state = 'settled' AND (operations[n]).op = 'what'));"
)


MUTANTS = (
    Mutant("no lock", "I1", APPLY, _LOCK, "\n        ) AS b\n", "concurrency"),
    Mutant(
        "check outside the transaction: balances are read before the lock",
        "I1",
        APPLY,
        _LOCK + _JOINS,
        "\n        ) AS b\n" + _JOINS + "        PERFORM FROM buckets WHERE id = ANY (b_ids)"
        " ORDER BY id FOR NO KEY UPDATE;\n",
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
        first="grants",
    ),
    Mutant(
        "expiry is forgotten",
        "I8",
        PARTS,
        "WHERE r.state = 'held' AND r.expires_at <= at AND r.org_id = ANY (org_ids)",
        "WHERE false AND r.org_id = ANY (org_ids)",
    ),
    Mutant(
        "another organisation's expired hold keeps the pool",
        "I8",
        PARTS,
        "WHERE r.state = 'held' AND r.expires_at <= at AND r.pool_id = ANY (pool_ids)",
        "WHERE false AND r.pool_id = ANY (pool_ids)",
        first="pools",
    ),
    Mutant(
        "an expired paid hold is released",
        "I8",
        APPLY,
        "suspense_sign := (x.pool = 'paid')::integer;",
        "suspense_sign := 0;",
    ),
    Mutant(
        "an expired local hold goes to suspense",
        "I8",
        APPLY,
        "suspense_sign := (x.pool = 'paid')::integer;",
        "suspense_sign := 1;",
    ),
    Mutant(
        "a late settle leaves the suspense",
        "I8",
        APPLY,
        "suspense_sign := -(held_sign = 0 AND x.pool = 'paid')::integer;",
        "suspense_sign := 0;",
    ),
    Mutant(
        "an expired hold still runs",
        "I8",
        APPLY,
        "CONTINUE WHEN b_units[p] = 'in_flight';",
        "IF b_units[p] = 'in_flight' THEN"
        " b_suspense[p] := b_suspense[p] + suspense_sign * counts; CONTINUE; END IF;",
        first="rates",
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
        PARTS,
        "FOR i IN 1 .. cardinality(amounts) LOOP",
        "FOR i IN REVERSE cardinality(amounts) .. 1 LOOP",
    ),
    Mutant(
        "an overage spares the last slice",
        "I6",
        PARTS,
        "IF last[side] > 0 AND total[side] = amount THEN",
        "IF false THEN",
    ),
    Mutant(
        "an overage is the credit's though the budget shared the hold",
        "I6",
        PARTS,
        "IF last[side] > 0 AND total[side] = amount THEN",
        "IF last[side] > 0 THEN",
    ),
    Mutant(
        "a grant is used after its end",
        "I11",
        PARTS,
        "starts_at <= at AND at < expires_at",
        "starts_at <= at",
    ),
    Mutant(
        "a grant is used before its start",
        "I11",
        PARTS,
        "starts_at <= at AND at < expires_at",
        "at < expires_at",
    ),
    Mutant(
        "a commercial account uses a free tier's grant",
        "I11",
        PARTS,
        "(g.commercial_use OR l.side = 1 OR NOT d.commercial)",
        "true",
    ),
    Mutant(
        "the last-expiring grant is drained first",
        "I11",
        PARTS,
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
        "CONTINUE WHEN reason IS NOT NULL OR amount = 0 OR account_id IS NULL;",
        "CONTINUE;",
    ),
    Mutant(
        "an extension is not counted",
        "I1",
        APPLY,
        "amount := greatest(o.amount - x.amount, 0);",
        "amount := 0;",
        first="extend",
    ),
    Mutant(
        "an extension counts in today's window",
        "I10",
        APPLY,
        "bucket_ids := x.bucket_ids;",
        "bucket_ids := r.bucket_ids;",
        first="extend",
    ),
    Mutant(
        "a slice that came meanwhile is not locked",
        "I2",
        APPLY,
        "IF b_ids[p] IS DISTINCT FROM x.slice_ids[k] THEN",
        "CONTINUE WHEN b_ids[p] IS DISTINCT FROM x.slice_ids[k]; IF false THEN",
        first="extend",
    ),
    Mutant(
        "two looks at the reservations",
        "I2",
        APPLY,
        "x := known[n];\n        r :=",
        "SELECT * INTO x FROM reservations WHERE id = (operations[n]).id;\n        r :=",
        first="between_statements",
    ),
    Mutant(
        "what ended since its routes were found is used",
        "I11",
        APPLY,
        "OR ended_ids IS NOT NULL AND EXISTS (",
        "OR false AND EXISTS (",
        first="between_statements",
    ),
    Mutant(
        "locks are waited for blindly",
        "I1",
        APPLY,
        "IF version IS DISTINCT FROM path.version THEN",
        "IF false THEN",
        first="between_statements",
    ),
    Mutant(
        "who waits for locks is not told of a change",
        "I1",
        CHANGES,
        "        await self.new_version(account_id)\n",
        "",
        first="between_statements",
    ),
    Mutant(
        "who waits for locks is not told of new credit",
        "I11",
        GRANTS,
        "            await writing.new_version(wish.account_id)\n",
        "",
        first="between_statements",
    ),
    Mutant(
        "who waits for locks is not told of a new pool",
        "I2",
        CHANGES,
        "CASE kind WHEN 'pool' THEN 0 ELSE coalesce(org_id, id) END",
        "coalesce(org_id, id)",
        first="between_statements",
    ),
    Mutant(
        "a repeated reserve holds again",
        "I3",
        APPLY,
        "WHEN 'reserve' THEN x.id IS NULL\n",
        "WHEN 'reserve' THEN true\n",
    ),
    Mutant(
        "a refusal is not remembered",
        "I3",
        APPLY,
        "'KEY_UNKNOWN', 'ABANDONED_HOLDS') THEN NULL",
        "'KEY_UNKNOWN', 'ABANDONED_HOLDS', 'BUDGET_EXCEEDED') THEN NULL",
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
        "WHEN o.op = 'void' AND reason IS NULL THEN 'voided'",
        "WHEN o.op = 'void' AND reason IS NULL THEN NULL",
    ),
    Mutant(
        "a settled attempt can be voided",
        "I4",
        APPLY,
        _ENDS,
        _ENDS_TOO.replace("what", "void"),
    ),
    Mutant(
        "a repeated settle posts again",
        "I4",
        APPLY,
        _ENDS,
        _ENDS_TOO.replace("what", "settle"),
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
        "spent := CASE o.op WHEN 'settle' THEN o.amount ELSE 0 END;",
        "spent := CASE o.op WHEN 'settle' THEN least(o.amount, x.amount) ELSE 0 END;",
    ),
    Mutant(
        "an overdrawn budget admits what costs nothing",
        "I6",
        APPLY,
        "IF need > rest AND (need > 0 OR requests > 0) THEN",
        "IF need > rest AND need > 0 THEN",
        first="admission",
    ),
    Mutant(
        "anybody's settle is answered as the owner's",
        "I4",
        APPLY,
        "WHEN o.key_id <> x.key_id THEN 'RESERVATION_NOT_YOURS'",
        "WHEN false THEN 'RESERVATION_NOT_YOURS'",
        first="not_yours",
    ),
    Mutant(
        "anybody's settle moves money",
        "I4",
        APPLY,
        "o.op IN ('settle', 'void') AND (o.key_id = x.key_id) IS NOT FALSE, false);",
        "o.op IN ('settle', 'void'), false);",
        first="not_yours",
    ),
    Mutant(
        "an extension does not ask whether the key was revoked",
        "I9",
        APPLY,
        "THEN nullif(r.reason, 'BUDGET_MISSING')",
        "THEN NULL",
        first="not_yours",
    ),
    Mutant("a pool's limits are nobody's", "I2", PARTS, "(4, d.pool_id))", "(4, NULL::bigint))"),
    Mutant("a team's budgets are skipped", "I2", PARTS, "(2, d.team_id),", "(2, NULL::bigint),"),
    Mutant(
        "no budget means no limit",
        "I14",
        PARTS,
        "WHEN d.pool <> 'cache' AND w.pays IS NOT TRUE THEN",
        "WHEN false THEN",
        first="admission",
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
        "    <<look>>\n",
        "    UPDATE buckets SET posted = 0 WHERE budget_id IN (\n"
        "        SELECT x.id FROM unnest(operations) AS o JOIN budgets x"
        " ON x.account_id = o.key_id);\n    <<look>>\n",
        first="bugs_of_others",
    ),
    Mutant(
        "a hit of the cache is not counted",
        "I1",
        APPLY,
        "b_posted[p] := b_posted[p] + 1;",
        "NULL;",
        first="rates",
    ),
    Mutant(
        "an extension is told to wait for a window that is not its own",
        "rate limits",
        APPLY,
        "WHEN requests > 0 OR b_units[p] <> 'tokens' THEN least(",
        "WHEN true THEN least(",
    ),
    Mutant(
        "who is refused by his own batch is not told when it frees up",
        "rate limits",
        APPLY,
        "IF b_units[p] = 'in_flight' AND requests > 0 THEN",
        "IF false THEN",
    ),
    *BESIDE,
)
