-- Where the money of an attempt comes from.
-- What is called in each batch is PL/pgSQL: its plans are kept, those of SQL functions are not.

-- One operation of a batch, as the service sends it. Each id is in a batch at most once.
CREATE TYPE ledger_operation AS (
    n integer,                  -- place in the batch, from 1
    op text,                    -- reserve, extend, settle, void
    id uuid,
    id_ms bigint,               -- the time within the id
    left_ms bigint,             -- a reserve that is not applied by then is not applied at all
    key_id bigint,
    request_id text,
    attempt integer,
    pool text,                  -- local, paid, cache
    provider text,
    model text,
    amount bigint,              -- to hold (extend: in all), or used
    tokens bigint,              -- likewise
    ttl_ms bigint,
    end_user text,
    tags jsonb,
    prompt_tokens bigint,
    cached_prompt_tokens bigint,
    completion_tokens bigint,
    reasoning_tokens bigint,
    estimated boolean,
    outcome text,
    trace_id text
);

-- What all attempts of one key, provider, model and set of tags have in common.
CREATE TYPE ledger_route AS (
    place integer,
    key_id bigint,
    pool pool_kind,
    provider text,
    model text,
    tags jsonb,
    org_id bigint,
    pool_id bigint,
    reason text,                -- why nothing may be reserved on it
    bucket_ids bigint[],        -- open windows of the budgets that apply, outermost level first
    grant_ids bigint[],         -- buckets of the tenant's usable grants, soonest-expiring first
    credit_ids bigint[],        -- likewise of the provider's pool
    prepaid_id bigint,          -- the tenant's account that spends its grants only
    prepaid_pool_id bigint      -- the pool, if it spends its credit only
);

-- The routes of a batch's reserves and extends, each once; `route_of` the operation in place n is
-- `routes[route_of[n]]`. Opens the windows that they are the first to touch.
CREATE FUNCTION find_routes(
    operations ledger_operation[], at timestamptz,
    OUT routes ledger_route[], OUT route_of integer[], OUT org_ids bigint[], OUT pool_ids bigint[]
)
LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    missing text;
BEGIN
    LOOP
        WITH asked AS MATERIALIZED (
            -- What asks for no route comes last, as NULL.
            SELECT d.*, dense_rank() OVER (
                ORDER BY key_id, pool, provider, model, tags)::integer AS place
            FROM (
                SELECT o.n, CASE o.op WHEN 'reserve' THEN o.key_id ELSE x.key_id END AS key_id,
                    coalesce(x.pool, o.pool::pool_kind) AS pool,
                    coalesce(x.provider, o.provider) AS provider,
                    coalesce(x.model, o.model) AS model, coalesce(x.tags, o.tags) AS tags
                FROM unnest(operations) AS o
                LEFT JOIN reservations x
                    ON x.id = CASE o.op WHEN 'extend' THEN o.id END AND x.state = 'held'
            ) AS d
        ),
        paths AS MATERIALIZED (
            SELECT d.*, a.org_id, a.team_id, pp.pool_id,
                CASE
                    WHEN k.account_id IS NULL THEN 'KEY_UNKNOWN'
                    WHEN k.revoked_at IS NOT NULL THEN 'KEY_REVOKED'
                    WHEN k.expires_at <= at THEN 'KEY_EXPIRED'
                    WHEN o.suspended OR t.suspended OR p.suspended THEN 'ACCOUNT_SUSPENDED'
                END AS reason,
                CASE WHEN o.prepaid THEN o.id WHEN t.prepaid THEN t.id END AS prepaid_id,
                CASE WHEN p.prepaid THEN p.id END AS prepaid_pool_id,
                o.commercial OR t.commercial AS commercial
            FROM (SELECT DISTINCT ON (place) * FROM asked WHERE key_id IS NOT NULL) AS d
            LEFT JOIN accounts a ON a.id = d.key_id AND a.kind = 'key'
            LEFT JOIN api_keys k ON k.account_id = a.id
            LEFT JOIN accounts t ON t.id = a.team_id
            LEFT JOIN accounts o ON o.id = a.org_id
            LEFT JOIN pool_providers pp ON pp.provider = d.provider AND d.pool = 'paid'
            LEFT JOIN accounts p ON p.id = pp.pool_id
        )
        SELECT
            array_agg(ROW(
                d.place, d.key_id, d.pool, d.provider, d.model, d.tags, d.org_id, d.pool_id,
                coalesce(d.reason, CASE
                    WHEN d.pool <> 'cache' AND w.pays IS NOT TRUE THEN 'BUDGET_MISSING' END),
                coalesce(w.bucket_ids, '{}'), g.grant_ids, g.credit_ids,
                d.prepaid_id, d.prepaid_pool_id
            )::ledger_route ORDER BY d.place),
            (SELECT array_agg(a.place ORDER BY a.n) FROM asked a),
            coalesce(array_agg(DISTINCT d.org_id) FILTER (WHERE d.org_id IS NOT NULL), '{}'),
            coalesce(array_agg(DISTINCT d.pool_id) FILTER (WHERE d.pool_id IS NOT NULL), '{}'),
            string_agg(w.missing, ',')
        INTO routes, route_of, org_ids, pool_ids, missing
        FROM paths d
        CROSS JOIN LATERAL (
            SELECT array_agg(b.id ORDER BY l.level, x.unit, x.kind, x.id)
                    FILTER (WHERE b.id IS NOT NULL) AS bucket_ids,
                string_agg(x.id::text, ',') FILTER (WHERE b.id IS NULL) AS missing,
                bool_or(x.unit = 'nano_usd' AND l.level < 4) AS pays
            FROM (VALUES (1, d.org_id), (2, d.team_id), (3, d.key_id), (4, d.pool_id))
                AS l (level, account_id)
            JOIN budgets x ON x.account_id = l.account_id
            LEFT JOIN buckets b
                ON b.budget_id = x.id AND b.window_key = window_key(x.kind, x.time_zone, at)
            WHERE x.closed_at IS NULL
                AND (d.pool <> 'cache' OR x.unit = 'requests')
                AND applies(x.providers, x.models, x.tags, d.provider, d.model, d.tags)
        ) AS w
        CROSS JOIN LATERAL (
            SELECT
                array_agg(b.id ORDER BY g.expires_at, g.id) FILTER (WHERE l.side = 0) AS grant_ids,
                array_agg(b.id ORDER BY g.expires_at, g.id) FILTER (WHERE l.side = 1) AS credit_ids
            FROM (VALUES (0, d.org_id), (0, d.team_id), (0, d.key_id), (1, d.pool_id))
                AS l (side, account_id)
            JOIN grants g ON g.account_id = l.account_id
            JOIN buckets b ON b.grant_id = g.id
            WHERE d.pool <> 'cache' AND g.starts_at <= at AND at < g.expires_at
                AND b.posted + b.lapsed < g.amount
                AND (g.commercial_use OR l.side = 1 OR NOT d.commercial)
                AND applies(g.providers, g.models, g.tags, d.provider, d.model, d.tags)
        ) AS g;
        EXIT WHEN missing IS NULL;
        INSERT INTO buckets (budget_id, unit, window_key)
        SELECT x.id, x.unit, window_key(x.kind, x.time_zone, at)
        FROM budgets x WHERE x.id = ANY (string_to_array(missing, ',')::bigint[])
        ORDER BY x.id
        ON CONFLICT DO NOTHING;
    END LOOP;
END
$$;
