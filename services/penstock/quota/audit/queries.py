"""The audit's SQL. Each reads one range ($1, $2] of ids; `$3` is the epoch whose checkpoint it
builds on (0: none). A finding is a row with one text column.

Folds lie in temporary tables: the balances of a large ledger need not fit into anybody's memory.
"""
# ruff: noqa: S608 - composed of what is written in this file.

SCRATCH = """
    CREATE TEMP TABLE audit_folds (
        epoch integer, turn bigint, bucket_id bigint, posted numeric, held numeric,
        suspense numeric, lapsed numeric, peak numeric
    ) ON COMMIT DROP;
    CREATE TEMP TABLE audit_live (
        bucket_id bigint PRIMARY KEY, holds numeric, held_tokens numeric, suspects numeric,
        suspect_tokens numeric, renewed boolean
    ) ON COMMIT DROP;
    CREATE TEMP TABLE audit_uses (
        bucket_id bigint, requests numeric, tokens numeric
    ) ON COMMIT DROP;
"""
INDEX_FOLDS = "CREATE INDEX ON audit_folds (bucket_id); ANALYZE audit_folds; ANALYZE audit_live"

LOAD_CHECKPOINT = """
    INSERT INTO audit_folds
    SELECT epoch, -1, bucket_id, posted, held, suspense, lapsed, NULL
    FROM checkpoint_buckets WHERE epoch = $1
"""

# `renewed`: one that is in flight was made after the checkpoint of epoch $1.
LOAD_LIVE = """
    INSERT INTO audit_live
    SELECT b, count(*) FILTER (WHERE state = 'held'),
        coalesce(sum(tokens) FILTER (WHERE state = 'held'), 0),
        count(*) FILTER (WHERE state = 'expired'),
        coalesce(sum(tokens) FILTER (WHERE state = 'expired'), 0),
        bool_or(state = 'held' AND epoch > $1)
    FROM (
        SELECT state, tokens, bucket_ids, epoch FROM reservations WHERE state = 'held'
        UNION ALL
        SELECT state, tokens, bucket_ids, epoch FROM reservations
        WHERE state = 'expired' AND pool = 'paid'
    ) AS r, unnest(r.bucket_ids) AS b
    GROUP BY b
"""

_BROKEN_ENTRY = """
    (available + held + suspense + posted <> 0
        OR num_nonnulls(slice_ids, slice_held, slice_suspense, slice_posted) NOT IN (0, 4)
        OR cardinality(slice_ids) <> ANY (ARRAY[cardinality(slice_held),
            cardinality(slice_suspense), cardinality(slice_posted),
            coalesce(cardinality(slice_lapsed), cardinality(slice_ids))]))
"""

COUNT_ENTRIES = f"""
    SELECT epoch, count(*) AS entries, sum(posted) AS posted,
        count(*) FILTER (WHERE {_BROKEN_ENTRY}) AS broken
    FROM entries WHERE id > $1 AND id <= $2 AND epoch > $3 GROUP BY epoch
"""

BROKEN_ENTRIES = f"""
    SELECT CASE WHEN available + held + suspense + posted <> 0
        THEN format('entry %s: legs sum to %s', id, available + held + suspense + posted)
        ELSE format('entry %s: its slices have not all their legs', id) END
    FROM entries WHERE id > $1 AND id <= $2 AND epoch > $3 AND {_BROKEN_ENTRY}
"""

# The peak: the highest that was used when a reserve or an extension had taken its part, in the
# order of the entries; each was written while its bucket was locked.
FOLD_ENTRIES = """
    INSERT INTO audit_folds
    SELECT epoch, $1, bucket_id, sum(posted), sum(held), sum(suspense), sum(lapsed),
        max(used) FILTER (WHERE asked)
    FROM (
        SELECT *, sum(posted + held + suspense + lapsed) OVER (
            PARTITION BY epoch, bucket_id ORDER BY id ROWS UNBOUNDED PRECEDING) AS used
        FROM (
            SELECT e.id, e.epoch, b AS bucket_id, e.posted, e.held, e.suspense, 0 AS lapsed,
                -- An extension in time alone asks for nothing.
                e.operation = 'reserve' OR (e.operation = 'extend' AND e.held > 0) AS asked
            FROM entries e, unnest(e.bucket_ids) AS b
            WHERE e.id > $1 AND e.id <= $2 AND e.epoch > $3
            UNION ALL
            SELECT e.id, e.epoch, s.id, s.posted, s.held, s.suspense, coalesce(s.lapsed, 0),
                e.operation IN ('reserve', 'extend')
            FROM entries e, unnest(e.slice_ids, e.slice_posted, e.slice_held, e.slice_suspense,
                e.slice_lapsed) AS s (id, posted, held, suspense, lapsed)
            WHERE e.id > $1 AND e.id <= $2 AND e.epoch > $3 AND e.slice_ids IS NOT NULL
        ) AS legs
    ) AS moved
    GROUP BY epoch, bucket_id
"""

_NAMED = """
    format('bucket %s (%s %s)', coalesce(b.id, f.bucket_id),
        CASE WHEN b.grant_id IS NOT NULL THEN format('grant %s "%s"', g.id, g.name)
            WHEN b.id IS NULL THEN 'unknown'
            ELSE format('budget %s "%s" from %s', x.id, x.name, b.window_key) END,
        format('of %s %s "%s"', a.kind, a.id, a.name))
"""
_FOLDED = """
    WITH f AS (
        SELECT bucket_id, sum(posted) AS posted, sum(held) AS held, sum(suspense) AS suspense,
            sum(lapsed) AS lapsed, max(before + peak) AS peak
        FROM (
            SELECT *, coalesce(sum(posted + held + suspense + lapsed) OVER (
                PARTITION BY bucket_id ORDER BY turn, epoch
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before
            FROM audit_folds WHERE bucket_id > $1 AND bucket_id <= $2
        ) AS parts
        GROUP BY bucket_id
    )
"""
_JOINED = """
    FROM (SELECT * FROM buckets WHERE id > $1 AND id <= $2) AS b
    FULL JOIN f ON f.bucket_id = b.id
    LEFT JOIN budgets x ON x.id = b.budget_id
    LEFT JOIN grants g ON g.id = b.grant_id
    LEFT JOIN accounts a ON a.id = coalesce(x.account_id, g.account_id)
"""

BALANCES = f"""
    {_FOLDED}
    SELECT format('%s: posted/held/suspense/lapsed are %s/%s/%s/%s, its entries say %s/%s/%s/%s',
        {_NAMED}, b.posted, b.held, b.suspense, b.lapsed,
        coalesce(f.posted, 0), coalesce(f.held, 0), coalesce(f.suspense, 0), coalesce(f.lapsed, 0))
    {_JOINED}
    WHERE b.id IS NULL OR (b.unit = 'nano_usd'
        AND (b.posted, b.held, b.suspense, b.lapsed) IS DISTINCT FROM (coalesce(f.posted, 0),
            coalesce(f.held, 0), coalesce(f.suspense, 0), coalesce(f.lapsed, 0)))
"""

# Whatever was admitted stayed within the limit of its time; what came unasked (an overage, a late
# settle, an adjustment) may lie over it. The limit at a moment is not known (an entry may be
# written before its change is seen), only the highest since the checkpoint: `settings.LOAD_LIMITS`.
OVER_LIMIT = f"""
    {_FOLDED}
    SELECT format('%s: %s were used when something was admitted; its limit was never above %s',
        {_NAMED}, f.peak, l.most)
    {_JOINED}
    JOIN audit_limits l ON l.budget_id = b.budget_id
    WHERE b.unit = 'nano_usd' AND NOT l.unbounded AND f.peak > l.most
    UNION ALL
    SELECT format('%s: %s are in flight; its limit was never above %s', {_NAMED}, b.held, l.most)
    {_JOINED}
    JOIN audit_limits l ON l.budget_id = b.budget_id
    JOIN audit_live v ON v.bucket_id = b.id
    -- Those that are left over from before the checkpoint had the limit of their time.
    WHERE b.unit = 'in_flight' AND NOT l.unbounded_open AND v.renewed AND b.held > l.most
"""

OVER_GRANT = f"""
    {_FOLDED}
    SELECT format('%s: %s were used or lapsed when something was admitted; its amount is %s',
        {_NAMED}, f.peak, g.amount)
    {_JOINED}
    WHERE f.peak > g.amount
"""

# What the settled reservations of one range count in the windows of rate limits.
FOLD_USES = """
    INSERT INTO audit_uses
    SELECT b.id, count(*), sum(coalesce(r.prompt_tokens, 0) + coalesce(r.completion_tokens, 0))
    FROM reservations r, unnest(r.bucket_ids) AS u (id)
    JOIN buckets b ON b.id = u.id AND b.unit IN ('requests', 'tokens')
    WHERE r.id > $1 AND r.id <= $2 AND r.state = 'settled'
    GROUP BY b.id
"""
LOAD_PRUNED_USES = "INSERT INTO audit_uses SELECT bucket_id, requests, tokens FROM pruned_uses"
INDEX_USES = "CREATE INDEX ON audit_uses (bucket_id); ANALYZE audit_uses"

RATES = f"""
    WITH used AS (
        SELECT bucket_id, sum(requests) AS requests, sum(tokens) AS tokens
        FROM audit_uses WHERE bucket_id > $1 AND bucket_id <= $2 GROUP BY bucket_id
    )
    SELECT format('%s: posted/held/suspense are %s/%s/%s, its reservations say %s/%s/%s', {_NAMED},
        b.posted, b.held, b.suspense, owed.posted, owed.held, owed.suspense)
    FROM (SELECT * FROM buckets WHERE id > $1 AND id <= $2 AND unit <> 'nano_usd') AS b
    LEFT JOIN audit_live f ON f.bucket_id = b.id
    LEFT JOIN used p ON p.bucket_id = b.id
    LEFT JOIN budgets x ON x.id = b.budget_id
    LEFT JOIN grants g ON g.id = b.grant_id
    LEFT JOIN accounts a ON a.id = x.account_id,
    LATERAL (SELECT
        coalesce(CASE b.unit WHEN 'tokens' THEN p.tokens WHEN 'requests' THEN p.requests END, 0)
            AS posted,
        coalesce(CASE b.unit WHEN 'tokens' THEN f.held_tokens ELSE f.holds END, 0) AS held,
        coalesce(CASE b.unit WHEN 'tokens' THEN f.suspect_tokens WHEN 'in_flight' THEN 0
            ELSE f.suspects END, 0) AS suspense
    ) AS owed
    WHERE (b.posted, b.held, b.suspense) IS DISTINCT FROM (owed.posted, owed.held, owed.suspense)
"""

# The fold of what lies before the end of epoch $1.
_UNTIL = """
    SELECT bucket_id, sum(posted) AS posted, sum(held) AS held, sum(suspense) AS suspense,
        sum(lapsed) AS lapsed
    FROM audit_folds WHERE epoch <= $1 GROUP BY bucket_id
"""

# $1: the epoch of a checkpoint that is not the one which was built on.
CHECKPOINT = f"""
    SELECT format('the checkpoint of epoch %s, bucket %s: posted/held/suspense/lapsed are'
        ' %s/%s/%s/%s, the entries until then say %s/%s/%s/%s', $1::integer,
        coalesce(c.bucket_id, f.bucket_id), c.posted, c.held, c.suspense, c.lapsed,
        f.posted, f.held, f.suspense, f.lapsed)
    FROM (SELECT * FROM checkpoint_buckets WHERE epoch = $1) AS c
    FULL JOIN ({_UNTIL}) AS f ON f.bucket_id = c.bucket_id
    LEFT JOIN buckets b ON b.id = f.bucket_id
    WHERE (b.id IS NULL OR b.unit = 'nano_usd')
        AND (coalesce(c.posted, 0), coalesce(c.held, 0), coalesce(c.suspense, 0),
            coalesce(c.lapsed, 0))
        IS DISTINCT FROM (coalesce(f.posted, 0), coalesce(f.held, 0), coalesce(f.suspense, 0),
            coalesce(f.lapsed, 0))
"""

WRITE_CHECKPOINT = f"""
    INSERT INTO checkpoint_buckets (epoch, bucket_id, posted, held, suspense, lapsed)
    SELECT $1, f.* FROM ({_UNTIL}) AS f JOIN buckets b ON b.id = f.bucket_id
    WHERE b.unit = 'nano_usd' AND (f.posted, f.held, f.suspense, f.lapsed) <> (0, 0, 0, 0)
"""

# The newest sealed epoch, and the newest whose entries are no longer in the ledger.
SEALED_BASE = "SELECT coalesce(max(id), 0) FROM epochs WHERE sealed_at IS NOT NULL"
OLDEST_BASE = """
    SELECT coalesce(max(e.id), 0) FROM epochs e
    WHERE e.sealed_at IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'entries'::regclass AND NOT i.inhdetachpending
            AND c.relname = format('entries_%s', e.id)
    )
"""
