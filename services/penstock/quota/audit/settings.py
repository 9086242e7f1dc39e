"""The audit's SQL of the configuration: every change of it is an entry, so what is there now is
what the last entry about it says.

Subjects are budgets (rate limits too), grants, accounts, keys and pools. A finding is a row with
one text column.
"""
# ruff: noqa: S608 - composed of what is written in this file.

SUBJECTS = {
    "budget": ("set_budget", "close_budget", "set_rate_limit", "close_rate_limit"),
    "grant": ("create_grant", "end_grant"),
    "account": ("create_account", "update_account"),
    "key": ("create_key", "rotate_key", "update_key", "revoke_key"),
    "pool": ("set_pool", "close_pool"),
}
"""What changes each: `what` in the entry's detail."""

SCRATCH = """
    CREATE TEMP TABLE audit_acts (
        epoch integer, id bigint, operation entry_operation, account_id bigint,
        reservation_id uuid, posted bigint, detail jsonb
    ) ON COMMIT DROP;
    CREATE TEMP TABLE audit_settings (
        epoch integer, subject text, subject_id bigint, entry_id bigint, account_id bigint,
        settings jsonb, before jsonb, is_sealed boolean
    ) ON COMMIT DROP;
"""

LOAD_CHECKPOINT = """
    INSERT INTO audit_settings
    SELECT epoch, subject, subject_id, entry_id, account_id, settings, NULL, true
    FROM checkpoint_settings WHERE epoch = $1
"""

# $1, $2: a range of entries' ids; $3: the epoch that is built on.
LOAD_ACTS = """
    INSERT INTO audit_acts
    SELECT epoch, id, operation, account_id, reservation_id, posted, detail
    FROM entries
    WHERE id > $1 AND id <= $2 AND epoch > $3 AND operation IN ('configure', 'grant', 'adjust')
"""

_SUBJECT = " ".join(
    f"WHEN detail->>'what' IN ({', '.join(f'{one!r}' for one in whats)}) THEN '{subject}'"
    for subject, whats in SUBJECTS.items()
)
# What is no number where an id belongs is about nothing: its subject then lacks an entry.
LOAD_SETTINGS = f"""
    INSERT INTO audit_settings
    SELECT epoch, subject, (settings->>'id')::bigint, id, account_id, settings, before, false
    FROM (
        SELECT epoch, id, account_id, CASE {_SUBJECT} END AS subject, detail->'after' AS settings,
            nullif(detail->'before', 'null') AS before
        FROM audit_acts WHERE operation IN ('configure', 'grant')
    ) AS a
    WHERE subject IS NOT NULL AND settings->>'id' ~ '^[0-9]{{1,18}}$'
"""
INDEX_SETTINGS = """
    CREATE INDEX ON audit_settings (subject, subject_id); ANALYZE audit_settings;
    ANALYZE audit_acts
"""

# Of each budget: the highest limit that was in force since the checkpoint. `unbounded`: there was
# none at some time; a closed one bounds no extension, but nothing new comes into it either.
LOAD_LIMITS = """
    CREATE TEMP TABLE audit_limits ON COMMIT DROP AS
    SELECT subject_id AS budget_id, max(amount) AS most,
        bool_or(amount IS NULL OR is_closed) AS unbounded,
        bool_or(amount IS NULL AND NOT is_closed) AS unbounded_open
    FROM (
        SELECT subject_id, coalesce(settings->>'closed', '') = 'true' AS is_closed,
            CASE jsonb_typeof(settings->'limit') WHEN 'number'
                THEN (settings->>'limit')::numeric END AS amount
        FROM audit_settings WHERE subject = 'budget'
    ) AS s
    GROUP BY subject_id;
    CREATE UNIQUE INDEX ON audit_limits (budget_id); ANALYZE audit_limits
"""


def _moment(column: str) -> str:
    """As the entries have a time; an infinite one is none."""
    utc = f"({column} AT TIME ZONE 'UTC')"
    return f"""CASE WHEN isfinite({column}) THEN to_char({utc}, 'YYYY-MM-DD"T"HH24:MI:SS')
        || CASE WHEN to_char({utc}, 'US') = '000000' THEN '' ELSE to_char({utc}, '.US') END
        || 'Z' END"""


def _globs(column: str) -> str:
    r"""As the entries have patterns: `a\_b%` is `a_b*`."""
    steps = (r"('\\', E'\x01')", r"('\%', E'\x02')", r"('\_', '_')", "('%', '*')",
             r"(E'\x02', '%')", r"(E'\x01', '\')")  # fmt: skip
    pattern = "p"
    for step in steps:
        pattern = f"replace({pattern}, {step[1:-1]})"
    return f"""CASE WHEN {column} = '{{}}' THEN '[]'::jsonb ELSE (
        SELECT jsonb_agg({pattern} ORDER BY n) FROM unnest({column}) WITH ORDINALITY AS u (p, n)
    ) END"""


def _scope(table: str) -> str:
    return f"""jsonb_build_object('providers', {_globs(f"{table}.providers")},
        'models', {_globs(f"{table}.models")}, 'tags', {table}.tags)"""


# (subject, id, account_id, settings) as they are now. Of what an entry tells only that which does
# not change by itself: a key's state ends with its time.
PRESENT = f"""
    SELECT 'budget' AS subject, x.id, x.account_id, jsonb_build_object(
        'name', x.name, 'unit', x.unit, 'window', x.kind, 'time_zone', x.time_zone,
        'limit', x.limit_amount, 'scope', {_scope("x")}, 'soft_percents', x.soft_percents,
        'closed', x.closed_at IS NOT NULL) AS settings
    FROM budgets x
    UNION ALL
    SELECT 'grant', g.id, g.account_id, jsonb_build_object(
        'grant_key', g.grant_key, 'name', g.name, 'reason', g.reason,
        'amount_nano_usd', g.amount, 'starts_at', {_moment("g.starts_at")},
        'expires_at', {_moment("g.expires_at")}, 'scope', {_scope("g")},
        'commercial_use', g.commercial_use)
    FROM grants g
    UNION ALL
    SELECT 'account', a.id, a.id, jsonb_build_object(
        'kind', a.kind, 'name', a.name, 'org_id', a.org_id, 'suspended', a.suspended,
        'prepaid', a.prepaid, 'commercial', a.commercial)
    FROM accounts a WHERE a.kind IN ('org', 'team')
    UNION ALL
    SELECT 'key', a.id, a.id, jsonb_build_object(
        'name', a.name, 'org_id', a.org_id, 'team_id', a.team_id,
        'revoked', k.revoked_at IS NOT NULL, 'policy', jsonb_build_object(
            'allowed_models', k.allowed_models, 'local_only', k.local_only,
            'fail_open_local', k.fail_open_local, 'expires_at', {_moment("k.expires_at")}))
    FROM accounts a JOIN api_keys k ON k.account_id = a.id
    UNION ALL
    SELECT 'pool', a.id, a.id, jsonb_build_object(
        'name', a.name, 'prepaid', a.prepaid, 'suspended', a.suspended,
        'providers', coalesce((SELECT jsonb_agg(p.provider ORDER BY p.provider)
            FROM pool_providers p WHERE p.pool_id = a.id), '[]'))
    FROM accounts a WHERE a.kind = 'pool'
"""

# A pool is suspended as an account is, and its entries tell of it there.
_LAST = """
    SELECT DISTINCT ON (s.subject, s.subject_id) s.subject, s.subject_id, s.account_id,
        CASE s.subject
            WHEN 'key' THEN s.settings || jsonb_build_object(
                'revoked', coalesce(s.settings->>'state', '') = 'revoked')
            WHEN 'pool' THEN s.settings || jsonb_build_object('suspended', coalesce((
                SELECT o.settings->'suspended' FROM audit_settings o
                WHERE o.subject = 'account' AND o.subject_id = s.subject_id
                ORDER BY o.entry_id DESC LIMIT 1), 'false'))
            ELSE s.settings
        END AS settings
    FROM audit_settings s ORDER BY s.subject, s.subject_id, s.entry_id DESC
"""
_IS_POOL = "EXISTS (SELECT FROM accounts o WHERE o.id = s.subject_id AND o.kind = 'pool')"

DIFFERENCES = f"""
    SELECT format('%s %s%s: %s', coalesce(p.subject, s.subject), coalesce(p.id, s.subject_id),
        ' "' || coalesce(p.settings->>'name', s.settings->>'name') || '"',
        CASE WHEN s.subject IS NULL THEN 'no entry tells how it came to be'
            WHEN p.subject IS NULL THEN 'it has entries, and is not there'
            WHEN s.account_id <> p.account_id THEN format(
                'it is of account %s, its last entry says %s', p.account_id, s.account_id)
            ELSE d.told END)
    FROM ({PRESENT}) AS p
    FULL JOIN ({_LAST}) AS s ON s.subject = p.subject AND s.subject_id = p.id
    LEFT JOIN LATERAL (
        SELECT string_agg(format('%s is %s, its last entry says %s', k.key, k.value,
            coalesce(s.settings->k.key, 'null')), '; ' ORDER BY k.key) AS told
        FROM jsonb_each(p.settings) AS k
        WHERE k.value <> coalesce(s.settings->k.key, 'null')
    ) AS d ON true
    WHERE s.subject IS NULL OR s.account_id <> p.account_id OR d.told IS NOT NULL
        OR (p.subject IS NULL AND NOT (s.subject = 'account' AND {_IS_POOL}))
"""

# Each entry goes on from where the one before it about the same has ended: none is missing between.
# Of a pool as an account there is no first one. What changes by itself is left out.
_STATED = """CASE jsonb_typeof({0}) WHEN 'object'
    THEN {0} - '{{state,prefix,secrets,counts_requests,created_at}}'::text[] ELSE {0} END"""
GAPS = f"""
    SELECT format('%s %s "%s": entry %s goes on from %s, %s', subject, subject_id,
        settings->>'name', entry_id, coalesce(before::text, 'nothing'), CASE
            WHEN previous_id IS NULL THEN 'and there is no entry before it'
            ELSE format('entry %s before it says %s', previous_id, was) END)
    FROM (
        SELECT s.*, lag(settings) OVER subject AS was, lag(entry_id) OVER subject AS previous_id
        FROM audit_settings s WHERE NOT (s.subject = 'account' AND {_IS_POOL})
        WINDOW subject AS (PARTITION BY subject, subject_id ORDER BY entry_id)
    ) AS s
    WHERE NOT is_sealed AND {_STATED.format("before")} IS DISTINCT FROM {_STATED.format("was")}
"""

# $1: the last entry of the epoch that is built on. Adjustments behind it are in its digest.
ADJUSTMENTS = """
    SELECT format('adjustment %s (entry %s): %s', coalesce('"' || a.adjustment_key || '"', '?'),
        coalesce(e.id, a.entry_id), CASE
            WHEN e.id IS NULL THEN 'there is no such entry'
            WHEN a.adjustment_key IS NULL THEN format(
                'it posted %s, and nothing remembers that it was made', e.posted)
            ELSE format('it is of %s to %s, its entry says %s to %s', a.amount,
                coalesce(a.reservation_id::text, 'account ' || a.account_id), e.posted,
                coalesce(e.reservation_id::text, 'account ' || e.account_id)) END)
    FROM (SELECT * FROM adjustments WHERE entry_id > $1 OR entry_id IS NULL) AS a
    FULL JOIN (SELECT * FROM audit_acts WHERE operation = 'adjust') AS e ON e.id = a.entry_id
    WHERE a.adjustment_key IS NULL OR e.id IS NULL OR a.amount <> e.posted
        OR a.reservation_id IS DISTINCT FROM e.reservation_id
        OR (a.reservation_id IS NULL AND a.account_id IS DISTINCT FROM e.account_id)
"""

# What the last entry until the end of epoch $1 says of each subject.
_UNTIL = """
    SELECT DISTINCT ON (subject, subject_id) subject, subject_id, entry_id, account_id, settings
    FROM audit_settings WHERE epoch <= $1 ORDER BY subject, subject_id, entry_id DESC
"""

# $1: the epoch of a checkpoint that is not the one which was built on.
CHECKPOINT = f"""
    SELECT format('the checkpoint of epoch %s, %s %s: its settings are not those of its last entry'
        ' until then', $1::integer, coalesce(c.subject, f.subject),
        coalesce(c.subject_id, f.subject_id))
    FROM (SELECT * FROM checkpoint_settings WHERE epoch = $1) AS c
    FULL JOIN ({_UNTIL}) AS f ON f.subject = c.subject AND f.subject_id = c.subject_id
    WHERE (c.entry_id, c.account_id, c.settings)
        IS DISTINCT FROM (f.entry_id, f.account_id, f.settings)
"""

WRITE_CHECKPOINT = f"""
    INSERT INTO checkpoint_settings (epoch, subject, subject_id, entry_id, account_id, settings)
    SELECT $1, f.* FROM ({_UNTIL}) AS f
"""
