-- What a batch asks: its operations, where their money comes from, who has abandoned holds there, what
-- a refusal tells. What is called in each batch is PL/pgSQL: its plans are kept, those of SQL functions
-- are not. Why OFFSET 0: see apply_batch.

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
-- `routes[route_of[n]]`. Opens the windows that they are the first to touch. `version`: of the
-- configuration of the organisations and of all pools, together.
CREATE FUNCTION find_routes(
    operations ledger_operation[], at timestamptz,
    OUT routes ledger_route[], OUT route_of integer[], OUT org_ids bigint[], OUT pool_ids bigint[],
    OUT version bigint
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
                LEFT JOIN LATERAL (
                    SELECT * FROM reservations
                    WHERE id = CASE o.op WHEN 'extend' THEN o.id END OFFSET 0
                ) AS x ON x.state = 'held'
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
        SELECT f.*, (SELECT sum(v.version) FROM configuration_versions v
            WHERE v.account_id = ANY (f.org_ids || 0::bigint))
        INTO routes, route_of, org_ids, pool_ids, missing, version
        FROM (SELECT
            array_agg(ROW(
                d.org_id, d.pool_id,
                coalesce(d.reason, CASE
                    WHEN d.pool <> 'cache' AND w.pays IS NOT TRUE THEN 'BUDGET_MISSING' END),
                coalesce(w.bucket_ids, '{}'), g.grant_ids, g.credit_ids,
                d.prepaid_id, d.prepaid_pool_id
            )::ledger_route ORDER BY d.place),
            (SELECT array_agg(a.place ORDER BY a.n) FROM asked a),
            coalesce(array_agg(DISTINCT d.org_id) FILTER (WHERE d.org_id IS NOT NULL), '{}')
                AS org_ids,
            coalesce(array_agg(DISTINCT d.pool_id) FILTER (WHERE d.pool_id IS NOT NULL), '{}')
                AS pool_ids,
            string_agg(w.missing, ',')
        FROM paths d
        CROSS JOIN LATERAL (
            SELECT array_agg(b.id ORDER BY l.level, x.unit, x.kind, x.id)
                    FILTER (WHERE b.id IS NOT NULL) AS bucket_ids,
                string_agg(x.id::text, ',') FILTER (WHERE b.id IS NULL) AS missing,
                bool_or(x.unit = 'nano_usd' AND l.level < 4) AS pays
            FROM (VALUES (1, d.org_id), (2, d.team_id), (3, d.key_id), (4, d.pool_id))
                AS l (level, account_id)
            CROSS JOIN LATERAL (
                SELECT * FROM budgets WHERE account_id = l.account_id OFFSET 0) AS x
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
            CROSS JOIN LATERAL (
                SELECT * FROM grants
                WHERE account_id = l.account_id AND starts_at <= at AND at < expires_at
                OFFSET 0) AS g
            CROSS JOIN LATERAL (SELECT * FROM buckets WHERE grant_id = g.id OFFSET 0) AS b
            WHERE d.pool <> 'cache'
                AND b.posted + b.lapsed < g.amount
                AND (g.commercial_use OR l.side = 1 OR NOT d.commercial)
                AND applies(g.providers, g.models, g.tags, d.provider, d.model, d.tags)
        ) AS g) AS f;
        EXIT WHEN missing IS NULL;
        INSERT INTO buckets (budget_id, unit, window_key)
        SELECT x.id, x.unit, window_key(x.kind, x.time_zone, at)
        FROM budgets x WHERE x.id = ANY (string_to_array(missing, ',')::bigint[])
        ORDER BY x.id
        ON CONFLICT DO NOTHING;
    END LOOP;
END
$$;

-- One movement of one reservation: what an entry records, and what becomes of the reservation.
CREATE TYPE ledger_step AS (
    n integer,                  -- of the operation; 0: an abandoned hold that was met
    id uuid,
    operation entry_operation,
    key_id bigint,
    bucket_ids bigint[],
    held bigint,                -- legs
    suspense bigint,
    posted bigint,
    slice_ids bigint[],
    slice_held bigint[],
    slice_suspense bigint[],
    slice_posted bigint[],
    state reservation_state,    -- how it ends; NULL: it does not, or not by this step
    released bigint,
    overage boolean,
    late boolean
);

-- What an operation comes to.
CREATE TYPE ledger_verdict AS (
    n integer,
    reason text,                -- of a refusal; NULL: done, now or before
    refusal jsonb,              -- its facts
    amount bigint,
    expires_at timestamptz,
    remaining bigint,
    posted bigint,
    released bigint,
    overage boolean,
    late boolean,
    at timestamptz              -- the database's clock
);

-- The slices of grants that an operation took.
CREATE TYPE ledger_slices AS (
    ids bigint[],
    amounts bigint[],
    sides smallint[]
);

-- How the slices of a hold of `amount` share what was posted: in their order, each side for itself. What
-- goes beyond the hold is the last slice's, where the slices were the whole hold.
CREATE FUNCTION slices_posted(amounts bigint[], sides smallint[], amount bigint, posted bigint)
RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE
    shares bigint[] := amounts;
    rest bigint[];
    total bigint[];
    last integer[] := '{0,0}';
    side integer;
BEGIN
    rest := ARRAY[posted, posted];
    total := '{0,0}';
    FOR i IN 1 .. cardinality(amounts) LOOP
        side := sides[i] + 1;
        shares[i] := least(amounts[i], rest[side]);
        rest[side] := rest[side] - shares[i];
        total[side] := total[side] + amounts[i];
        last[side] := i;
    END LOOP;
    FOR side IN 1 .. 2 LOOP
        IF last[side] > 0 AND total[side] = amount THEN
            shares[last[side]] := shares[last[side]] + rest[side];
        END IF;
    END LOOP;
    RETURN shares;
END
$$;

CREATE FUNCTION scaled(amounts bigint[], by integer) RETURNS bigint[]
LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT array_agg(a * by ORDER BY place) FROM unnest(amounts) WITH ORDINALITY AS u (a, place)
$$;

-- Which budget or limit has too little left, and when it has more: in flight, when the first hold ends
-- that is in the tables and not among `resolved`, which the batch has resolved already.
CREATE FUNCTION refusal_of(bucket bigint, resolved uuid[]) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'budget_id', x.id, 'budget_name', x.name, 'account_kind', a.kind, 'account_id', a.id,
        'account_name', a.name, 'unit', x.unit, 'window', x.kind, 'time_zone', x.time_zone,
        'resets_at_ms', (extract(epoch FROM CASE
            WHEN x.unit <> 'in_flight' THEN window_end(x.kind, x.time_zone, b.window_key)
            WHEN a.kind = 'pool' THEN (
                SELECT min(r.expires_at) FROM reservations r
                WHERE r.state = 'held' AND r.pool_id = a.id AND b.id = ANY (r.bucket_ids)
                    AND r.id <> ALL (resolved))
            ELSE (
                SELECT min(r.expires_at) FROM reservations r
                WHERE r.state = 'held' AND r.org_id = coalesce(a.org_id, a.id)
                    AND b.id = ANY (r.bucket_ids) AND r.id <> ALL (resolved))
        END) * 1000)::bigint
    )
    FROM buckets b JOIN budgets x ON x.id = b.budget_id JOIN accounts a ON a.id = x.account_id
    WHERE b.id = bucket
$$;

CREATE FUNCTION credit_refusal_of(account bigint, available bigint, asked bigint) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'account_kind', a.kind, 'account_id', a.id, 'account_name', a.name,
        'available', available, 'requested', asked)
    FROM accounts a WHERE a.id = account
$$;

-- The first `take` abandoned holds of these owners, in turns, so that nobody waits behind another's;
-- who has more. `owner`: the column that names them.
CREATE FUNCTION take_turns(
    owner text, owner_ids bigint[], except_ids uuid[], at timestamptz, take integer,
    OUT ids uuid[], OUT left_ids bigint[]
)
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    EXECUTE format(
        'SELECT array_agg(x.id) FILTER (WHERE x.place <= $4),
            array_agg(DISTINCT x.owner_id) FILTER (WHERE x.place > $4)
        FROM (
            SELECT r.id, u.owner_id, row_number() OVER (ORDER BY r.turn, r.expires_at) AS place
            FROM (SELECT DISTINCT unnest($1) AS owner_id) AS u, LATERAL (
                SELECT h.id, h.expires_at, row_number() OVER (ORDER BY h.expires_at) AS turn
                FROM reservations h
                WHERE h.state = ''held'' AND h.expires_at <= $3 AND h.%I = u.owner_id
                    AND h.id <> ALL ($2)
                ORDER BY h.expires_at LIMIT $4 + 1) AS r
        ) AS x', owner)
    INTO ids, left_ids USING owner_ids, except_ids, at, take;
END
$$;

-- The abandoned holds of these organisations and pools that a batch resolves; `left_*`: who may have
-- more. Those of organisations that the batch is not about are met over a pool: where somebody keeps
-- their rows locked, they are left for later.
CREATE FUNCTION find_abandoned(
    org_ids bigint[], pool_ids bigint[], routes ledger_route[], at timestamptz,
    OUT ids uuid[], OUT left_org_ids bigint[], OUT left_pool_ids bigint[]
)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    -- A batch that met all holds of a crashed router would outlast its time-outs: the next goes on.
    abandoned_max constant integer := 500;
    met uuid[];                 -- over a pool
    stranger_ids uuid[];
    free bigint[];              -- the buckets of those that nobody has locked
BEGIN
    left_org_ids := '{}';
    left_pool_ids := '{}';
    ids := ARRAY(
        SELECT r.id FROM reservations r
        WHERE r.state = 'held' AND r.expires_at <= at AND r.org_id = ANY (org_ids)
        LIMIT abandoned_max + 1);
    IF cardinality(ids) > abandoned_max THEN
        SELECT x.ids, x.left_ids INTO ids, left_org_ids
        FROM take_turns('org_id', org_ids, '{}', at, abandoned_max) AS x;
    END IF;
    IF pool_ids = '{}' THEN
        RETURN;
    END IF;
    met := ARRAY(
        SELECT r.id FROM reservations r
        WHERE r.state = 'held' AND r.expires_at <= at AND r.pool_id = ANY (pool_ids)
            AND r.id <> ALL (ids)
        LIMIT abandoned_max + 1);
    IF cardinality(met) > abandoned_max THEN
        SELECT x.ids, x.left_ids INTO met, left_pool_ids
        FROM take_turns('pool_id', pool_ids, ids, at, abandoned_max) AS x;
    END IF;
    IF met = '{}' THEN
        RETURN;
    END IF;
    ids := ids || met;
    SELECT array_agg(r.id) INTO stranger_ids FROM reservations r
    WHERE r.id = ANY (met) AND r.org_id <> ALL (org_ids);
    IF stranger_ids IS NULL THEN
        RETURN;
    END IF;
    -- Only looked at, the locks go back: out of order they would deadlock.
    BEGIN
        SELECT array_agg(l.id) INTO free FROM (
            SELECT b.id FROM buckets b WHERE b.id = ANY (ARRAY(
                SELECT unnest(r.bucket_ids || r.slice_ids) FROM reservations r
                WHERE r.id = ANY (stranger_ids)))
            FOR NO KEY UPDATE SKIP LOCKED
        ) AS l;
        RAISE EXCEPTION USING ERRCODE = 'PL001';
    EXCEPTION WHEN SQLSTATE 'PL001' THEN NULL;
    END;
    free := free || ARRAY(SELECT unnest(u.bucket_ids) FROM unnest(routes) AS u);
    SELECT coalesce(array_agg(r.id) FILTER (
            WHERE r.id <> ALL (stranger_ids) OR r.bucket_ids || r.slice_ids <@ free), '{}'),
        left_pool_ids || coalesce(array_agg(DISTINCT r.pool_id) FILTER (
            WHERE r.id = ANY (stranger_ids) AND NOT r.bucket_ids || r.slice_ids <@ free), '{}')
    INTO ids, left_pool_ids
    FROM reservations r WHERE r.id = ANY (ids);
END
$$;
