"""The audit's SQL. Each reads one range ($1, $2] of ids; `$3` is the epoch whose checkpoint it
builds on (0: none). A finding is a row with one text column.

Folds lie in temporary tables: the balances of a large ledger need not fit into anybody's memory.
"""
# ruff: noqa: S608 - composed of what is written in this file.

SCRATCH = """
    CREATE TEMP TABLE audit_folds (
        epoch integer, bucket_id bigint, posted numeric, held numeric, suspense numeric,
        lapsed numeric, unasked numeric
    ) ON COMMIT DROP;
    CREATE TEMP TABLE audit_live (
        bucket_id bigint PRIMARY KEY, holds numeric, held_tokens numeric, suspects numeric,
        suspect_tokens numeric
    ) ON COMMIT DROP;
"""
INDEX_FOLDS = "CREATE INDEX ON audit_folds (bucket_id); ANALYZE audit_folds; ANALYZE audit_live"

LOAD_CHECKPOINT = """
    INSERT INTO audit_folds
    SELECT epoch, bucket_id, posted, held, suspense, lapsed, unasked
    FROM checkpoint_buckets WHERE epoch = $1
"""

LOAD_LIVE = """
    INSERT INTO audit_live
    SELECT b, count(*) FILTER (WHERE state = 'held'),
        coalesce(sum(tokens) FILTER (WHERE state = 'held'), 0),
        count(*) FILTER (WHERE state = 'expired'),
        coalesce(sum(tokens) FILTER (WHERE state = 'expired'), 0)
    FROM (
        SELECT state, tokens, bucket_ids FROM reservations WHERE state = 'held'
        UNION ALL
        SELECT state, tokens, bucket_ids FROM reservations
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

# What a reserve or an extension takes was asked for. Anything else that takes room was not.
FOLD_ENTRIES = """
    INSERT INTO audit_folds
    SELECT epoch, bucket_id, sum(posted), sum(held), sum(suspense), sum(lapsed),
        sum(CASE WHEN asked THEN 0 ELSE greatest(posted + held + suspense, 0) END)
    FROM (
        SELECT e.epoch, b AS bucket_id, e.posted, e.held, e.suspense, 0 AS lapsed,
            e.operation IN ('reserve', 'extend') AS asked
        FROM entries e, unnest(e.bucket_ids) AS b
        WHERE e.id > $1 AND e.id <= $2 AND e.epoch > $3
        UNION ALL
        SELECT e.epoch, s.id, s.posted, s.held, s.suspense, coalesce(s.lapsed, 0),
            e.operation IN ('reserve', 'extend')
        FROM entries e, unnest(e.slice_ids, e.slice_posted, e.slice_held, e.slice_suspense,
            e.slice_lapsed) AS s (id, posted, held, suspense, lapsed)
        WHERE e.id > $1 AND e.id <= $2 AND e.epoch > $3 AND e.slice_ids IS NOT NULL
    ) AS legs
    GROUP BY epoch, bucket_id
"""

_RESERVATION_FOLDS = """
    SELECT reservation_id AS id, sum(held) AS held, sum(suspense) AS suspense,
        sum(posted) AS posted, sum(slice_held) AS slice_held,
        sum(slice_suspense) AS slice_suspense, sum(slice_posted) AS slice_posted,
        count(*) FILTER (WHERE operation IN ('reserve', 'count')) AS begins,
        count(*) FILTER (WHERE operation IN ('settle', 'late_settle', 'void', 'count')) AS ends,
        count(*) FILTER (WHERE operation = 'void') AS voids,
        count(*) FILTER (WHERE operation = 'late_settle') AS lates,
        count(*) FILTER (WHERE operation = 'adjust') AS adjusts,
        count(*) FILTER (WHERE operation IS NULL) AS carried,
        min(bucket_ids) FILTER (WHERE operation <> 'adjust') AS path_min,
        max(bucket_ids) FILTER (WHERE operation <> 'adjust') AS path_max
    FROM (
        SELECT reservation_id, operation, bucket_ids, held, suspense, posted,
            CASE WHEN slice_ids IS NULL THEN 0
                ELSE (SELECT sum(x) FROM unnest(slice_held) AS x) END AS slice_held,
            CASE WHEN slice_ids IS NULL THEN 0
                ELSE (SELECT sum(x) FROM unnest(slice_suspense) AS x) END AS slice_suspense,
            CASE WHEN slice_ids IS NULL THEN 0
                ELSE (SELECT sum(x) FROM unnest(slice_posted) AS x) END AS slice_posted
        FROM entries
        WHERE reservation_id > $1 AND reservation_id <= $2 AND epoch > $3 AND epoch <= $4
        UNION ALL
        SELECT reservation_id, NULL, NULL, held, suspense, 0, slice_held, slice_suspense, 0
        FROM checkpoint_reservations
        WHERE epoch = $3 AND reservation_id > $1 AND reservation_id <= $2
    ) AS moved
    GROUP BY reservation_id
"""

# What is wrong with a reservation and how it is told: the first that applies. `whole`: all of its
# entries are known, or what the checkpoint carried over.
_FAULTS = (
    ("missing", "'it has entries, and is not there'"),
    (
        "(held, suspense) IS DISTINCT FROM (owed_held, owed_suspense)",
        """format('held/suspense are %s/%s, its entries say %s/%s',
            owed_held, owed_suspense, held, suspense)""",
    ),
    (
        "whole AND entries_posted <> posted + adjusted",
        """format('posted with adjustments is %s, its entries say %s',
            posted + adjusted, entries_posted)""",
    ),
    (
        "begins > 1 OR ends > 1",
        "format('it began %s times and ended %s times', begins, ends)",
    ),
    ("begun_here AND begins = 0", "'its first entry is missing'"),
    (
        "whole AND state IN ('settled', 'voided') AND ends = 0 AND adjusts = 0",
        "'its last entry is missing'",
    ),
    ("state IN ('held', 'expired', 'refused') AND ends > 0", "'an entry says that it has ended'"),
    (
        "ends > 0 AND (state = 'voided') <> (voids > 0)",
        "'an entry says that it ended in another way'",
    ),
    (
        "state = 'settled' AND ends > 0 AND late <> (lates > 0)",
        "format('late is %s, its entries say %s', late, lates > 0)",
    ),
    (
        "path_min IS DISTINCT FROM path_max OR path_min <> bucket_ids",
        "'its entries lie in other buckets'",
    ),
    (
        "state = 'settled' AND overage <> (posted > amount)",
        "format('%s posted of %s held, overage is %s', posted, amount, overage)",
    ),
    (
        """slice_count IS DISTINCT FROM amount_count OR slice_count IS DISTINCT FROM side_count
            OR too_much""",
        "'its slices do not add up'",
    ),
    (
        "(slice_held, slice_suspense) IS DISTINCT FROM (owed_slice_held, owed_slice_suspense)",
        """format('its slices hold/suspect %s/%s, its entries say %s/%s',
            owed_slice_held, owed_slice_suspense, slice_held, slice_suspense)""",
    ),
    (
        # One of each side, the tenant's and the provider's.
        "whole AND slice_posted > 2 * (posted + adjusted)",
        "format('its slices posted %s of %s', slice_posted, posted + adjusted)",
    ),
)

# $4: any epoch; $5: what was made after this time has its first entry among those that are read.
RESERVATIONS = f"""
    WITH folds AS ({_RESERVATION_FOLDS}),
    owed AS (
        SELECT id, key_id, state, created_at, amount, posted, adjusted, overage, late,
            bucket_ids,
            CASE state WHEN 'held' THEN amount ELSE 0 END AS owed_held,
            CASE WHEN state = 'expired' AND pool = 'paid' THEN amount ELSE 0 END
                AS owed_suspense,
            CASE WHEN slice_ids IS NULL THEN 0
                ELSE (SELECT sum(x) FROM unnest(slice_amounts) AS x) END AS slices,
            cardinality(slice_ids) AS slice_count, cardinality(slice_amounts) AS amount_count,
            cardinality(slice_sides) AS side_count,
            CASE WHEN slice_ids IS NULL THEN false ELSE EXISTS (
                SELECT FROM unnest(slice_amounts, slice_sides) AS s (part, side)
                GROUP BY s.side HAVING sum(s.part) > amount OR min(s.part) < 0
            ) END AS too_much
        FROM reservations WHERE id > $1 AND id <= $2
    ),
    both_sides AS (
        SELECT coalesce(o.id, f.id) AS id, o.id IS NULL AS missing, o.state, o.posted, o.adjusted,
            coalesce(o.owed_held, 0) AS owed_held, coalesce(o.owed_suspense, 0) AS owed_suspense,
            o.amount, o.overage, o.late, o.bucket_ids,
            coalesce(f.held, 0) AS held, coalesce(f.suspense, 0) AS suspense,
            coalesce(f.posted, 0) AS entries_posted, coalesce(f.begins, 0) AS begins,
            coalesce(f.ends, 0) AS ends, coalesce(f.voids, 0) AS voids,
            coalesce(f.lates, 0) AS lates, coalesce(f.adjusts, 0) AS adjusts,
            coalesce(f.begins, 0) + coalesce(f.carried, 0) > 0 AS whole,
            f.path_min, f.path_max,
            CASE WHEN o.owed_held > 0 THEN o.slices ELSE 0 END AS owed_slice_held,
            CASE WHEN o.owed_suspense > 0 THEN o.slices ELSE 0 END AS owed_slice_suspense,
            coalesce(f.slice_held, 0) AS slice_held,
            coalesce(f.slice_suspense, 0) AS slice_suspense,
            coalesce(f.slice_posted, 0) AS slice_posted,
            o.state <> 'refused' AND o.key_id IS NOT NULL
                AND o.created_at > coalesce($5::timestamptz, '-infinity') AS begun_here,
            o.slice_count, o.amount_count, o.side_count, o.too_much
        FROM owed o FULL JOIN folds f ON f.id = o.id
    )
    SELECT format('reservation %s (%s): %s', id, coalesce(state::text, 'unknown'),
        CASE {" ".join(f"WHEN {fault} THEN {told}" for fault, told in _FAULTS)} END)
    FROM both_sides WHERE {" OR ".join(f"({fault})" for fault, _ in _FAULTS)}
"""

CARRY_RESERVATIONS = f"""
    INSERT INTO checkpoint_reservations
    SELECT $4, id, held, suspense, slice_held, slice_suspense FROM ({_RESERVATION_FOLDS}) AS f
    WHERE held <> 0 OR suspense <> 0
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
            sum(lapsed) AS lapsed, sum(unasked) AS unasked
        FROM audit_folds WHERE bucket_id > $1 AND bucket_id <= $2 GROUP BY bucket_id
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

# Whatever was admitted stayed within the limit, so no more can lie over it than came unasked.
OVER_LIMIT = f"""
    {_FOLDED}
    SELECT format('%s: %s is over its limit of %s; %s came unasked (overage, late, adjusted)',
        {_NAMED}, b.posted + b.held + b.suspense, x.limit_amount, coalesce(f.unasked, 0))
    {_JOINED}
    WHERE b.unit = 'nano_usd' AND x.limit_lowered_at IS NULL
        AND b.posted + b.held + b.suspense - x.limit_amount > coalesce(f.unasked, 0)
    UNION ALL
    SELECT format('%s: %s are in flight, its limit is %s', {_NAMED}, b.held, x.limit_amount)
    {_JOINED}
    WHERE b.unit = 'in_flight' AND x.limit_lowered_at IS NULL AND b.held > x.limit_amount
"""

OVER_GRANT = f"""
    {_FOLDED}
    SELECT format('%s: %s is over its amount of %s; %s came unasked (overage, late, adjusted)',
        {_NAMED}, b.posted + b.held + b.suspense + b.lapsed, g.amount, coalesce(f.unasked, 0))
    {_JOINED}
    WHERE b.posted + b.held + b.suspense + b.lapsed - g.amount > coalesce(f.unasked, 0)
"""

RATES = f"""
    SELECT format('%s: held/suspense are %s/%s, its reservations say %s/%s', {_NAMED},
        b.held, b.suspense, owed.held, owed.suspense)
    FROM (SELECT * FROM buckets WHERE id > $1 AND id <= $2 AND unit <> 'nano_usd') AS b
    LEFT JOIN audit_live f ON f.bucket_id = b.id
    LEFT JOIN budgets x ON x.id = b.budget_id
    LEFT JOIN grants g ON g.id = b.grant_id
    LEFT JOIN accounts a ON a.id = x.account_id,
    LATERAL (SELECT
        coalesce(CASE b.unit WHEN 'tokens' THEN f.held_tokens ELSE f.holds END, 0) AS held,
        coalesce(CASE b.unit WHEN 'tokens' THEN f.suspect_tokens WHEN 'in_flight' THEN 0
            ELSE f.suspects END, 0) AS suspense
    ) AS owed
    WHERE (b.held, b.suspense) IS DISTINCT FROM (owed.held, owed.suspense)
        OR (b.unit = 'in_flight' AND b.posted <> 0)
"""

# $1: the epoch of a checkpoint that is not the one which was built on.
CHECKPOINT = """
    SELECT format('the checkpoint of epoch %s, bucket %s: posted/held/suspense/lapsed are'
        ' %s/%s/%s/%s, the entries until then say %s/%s/%s/%s', $1::integer,
        coalesce(c.bucket_id, f.bucket_id), c.posted, c.held, c.suspense, c.lapsed,
        f.posted, f.held, f.suspense, f.lapsed)
    FROM (SELECT * FROM checkpoint_buckets WHERE epoch = $1) AS c
    FULL JOIN (
        SELECT d.bucket_id, sum(d.posted) AS posted, sum(d.held) AS held,
            sum(d.suspense) AS suspense, sum(d.lapsed) AS lapsed, sum(d.unasked) AS unasked
        FROM audit_folds d WHERE d.epoch <= $1 GROUP BY d.bucket_id
    ) AS f ON f.bucket_id = c.bucket_id
    LEFT JOIN buckets b ON b.id = f.bucket_id
    WHERE (b.id IS NULL OR b.unit = 'nano_usd')
        AND (coalesce(c.posted, 0), coalesce(c.held, 0), coalesce(c.suspense, 0),
            coalesce(c.lapsed, 0), coalesce(c.unasked, 0))
        IS DISTINCT FROM (coalesce(f.posted, 0), coalesce(f.held, 0), coalesce(f.suspense, 0),
            coalesce(f.lapsed, 0), coalesce(f.unasked, 0))
"""

WRITE_CHECKPOINT = """
    INSERT INTO checkpoint_buckets (epoch, bucket_id, posted, held, suspense, lapsed, unasked)
    SELECT $1, f.bucket_id, sum(f.posted), sum(f.held), sum(f.suspense), sum(f.lapsed),
        sum(f.unasked)
    FROM audit_folds f JOIN buckets b ON b.id = f.bucket_id AND b.unit = 'nano_usd'
    WHERE f.epoch <= $1
    GROUP BY f.bucket_id
    HAVING sum(f.posted) <> 0 OR sum(f.held) <> 0 OR sum(f.suspense) <> 0 OR sum(f.lapsed) <> 0
        OR sum(f.unasked) <> 0
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
