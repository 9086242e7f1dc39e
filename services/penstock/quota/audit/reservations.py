"""The audit's SQL of reservations: each beside the fold of its entries.

Each reads one range ($1, $2] of ids; `$3` is the epoch whose checkpoint it builds on (0: none).
"""
# ruff: noqa: S608 - composed of what is written in this file.

_FOLDS = """
    SELECT reservation_id AS id, sum(held) AS held, sum(suspense) AS suspense,
        sum(posted) AS posted, sum(slice_held) AS slice_held,
        sum(slice_suspense) AS slice_suspense, sum(slice_posted) AS slice_posted,
        count(*) FILTER (WHERE operation IN ('reserve', 'count')) AS begins,
        count(*) FILTER (WHERE operation IN ('settle', 'late_settle', 'void', 'count')) AS ends,
        count(*) FILTER (WHERE operation = 'void') AS voids,
        count(*) FILTER (WHERE operation = 'late_settle') AS lates,
        count(*) FILTER (WHERE operation = 'adjust') AS adjusts,
        count(*) FILTER (WHERE operation IS NULL) AS carried,
        min(epoch) FILTER (WHERE operation IN ('reserve', 'count')) AS begun_in,
        min(at) FILTER (WHERE operation IN ('reserve', 'count')) AS begun_at,
        max(at) FILTER (WHERE operation IN ('settle', 'late_settle', 'void', 'count')) AS ended_at,
        max(at) FILTER (WHERE operation = 'expire') AS expired_at,
        min(account_id) AS key_min, max(account_id) AS key_max,
        min(bucket_ids) FILTER (WHERE operation <> 'adjust') AS path_min,
        max(bucket_ids) FILTER (WHERE operation <> 'adjust') AS path_max
    FROM (
        SELECT reservation_id, operation, epoch, at, account_id, bucket_ids, held, suspense,
            posted,
            CASE WHEN slice_ids IS NULL THEN 0
                ELSE (SELECT sum(x) FROM unnest(slice_held) AS x) END AS slice_held,
            CASE WHEN slice_ids IS NULL THEN 0
                ELSE (SELECT sum(x) FROM unnest(slice_suspense) AS x) END AS slice_suspense,
            CASE WHEN slice_ids IS NULL THEN 0
                ELSE (SELECT sum(x) FROM unnest(slice_posted) AS x) END AS slice_posted
        FROM entries
        WHERE reservation_id > $1 AND reservation_id <= $2 AND epoch > $3 AND epoch <= $4
        UNION ALL
        SELECT reservation_id, NULL, NULL, NULL, NULL, NULL, held, suspense, 0, slice_held,
            slice_suspense, 0
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
        "begun_in <> epoch",
        "format('it began in epoch %s, its first entry lies in %s', epoch, begun_in)",
    ),
    (
        """coalesce(key_min, key_id) IS DISTINCT FROM key_id
            OR coalesce(key_max, key_id) IS DISTINCT FROM key_id""",
        """format('it is of account %s, an entry says %s', key_id,
            CASE WHEN key_max IS DISTINCT FROM key_id THEN key_max ELSE key_min END)""",
    ),
    (
        "begun_at <> created_at",
        "format('it began at %s, its first entry says %s', created_at, begun_at)",
    ),
    (
        """coalesce(CASE WHEN state = 'expired' THEN expired_at WHEN ends = 1 THEN ended_at END,
            resolved_at) IS DISTINCT FROM resolved_at""",
        """format('it ended at %s, its entry says %s', resolved_at,
            CASE WHEN state = 'expired' THEN expired_at ELSE ended_at END)""",
    ),
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

# $4: any epoch.
RESERVATIONS = f"""
    WITH folds AS ({_FOLDS}),
    owed AS (
        SELECT id, key_id, state, created_at, resolved_at, epoch, amount, posted, adjusted,
            overage, late, bucket_ids,
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
            f.path_min, f.path_max, o.key_id, o.created_at, o.resolved_at, o.epoch, f.begun_in,
            f.begun_at, f.ended_at, f.expired_at, f.key_min, f.key_max,
            CASE WHEN o.owed_held > 0 THEN o.slices ELSE 0 END AS owed_slice_held,
            CASE WHEN o.owed_suspense > 0 THEN o.slices ELSE 0 END AS owed_slice_suspense,
            coalesce(f.slice_held, 0) AS slice_held,
            coalesce(f.slice_suspense, 0) AS slice_suspense,
            coalesce(f.slice_posted, 0) AS slice_posted,
            o.state <> 'refused' AND o.key_id IS NOT NULL AND o.epoch > $3 AS begun_here,
            o.slice_count, o.amount_count, o.side_count, o.too_much
        FROM owed o FULL JOIN folds f ON f.id = o.id
    )
    SELECT format('reservation %s (%s): %s', id, coalesce(state::text, 'unknown'),
        CASE {" ".join(f"WHEN {fault} THEN {told}" for fault, told in _FAULTS)} END)
    FROM both_sides WHERE {" OR ".join(f"({fault})" for fault, _ in _FAULTS)}
"""

CARRY = f"""
    INSERT INTO checkpoint_reservations
    SELECT $4, id, held, suspense, slice_held, slice_suspense FROM ({_FOLDS}) AS f
    WHERE held <> 0 OR suspense <> 0
"""
