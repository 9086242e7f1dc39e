-- One batch is one round trip and one commit.

-- One movement of one reservation: what an entry records.
CREATE TYPE ledger_step AS (
    n integer,                  -- of the operation; 0: an abandoned hold that was met
    id uuid,
    operation entry_operation,
    key_id bigint,
    bucket_ids bigint[],
    -- In each bucket of `bucket_ids`: `*_sign` times what it counts (money, tokens, 1 request, 1 in flight).
    held_sign integer,
    suspense_sign integer,
    posted_sign integer,
    requests integer,           -- 0 for an extension: it is the same request
    amount bigint,              -- held or suspected
    posted bigint,
    tokens bigint,
    tokens_posted bigint,
    slice_ids bigint[],
    slice_held bigint[],
    slice_suspense bigint[],
    slice_posted bigint[]
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

-- The facts of a budget or limit that has too little left, for the caller's eyes. What the batch
-- itself changed of the holds in flight is not in the tables yet: it has resolved `resolved`, and the
-- first of those that it made ends at `frees_at`.
CREATE FUNCTION refusal_of(
    bucket bigint, limit_now bigint, posted_now bigint, held_now bigint, suspense_now bigint,
    asked bigint, resolved uuid[], frees_at timestamptz
)
RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'budget_id', x.id, 'budget_name', x.name, 'account_kind', a.kind, 'account_id', a.id,
        'account_name', a.name, 'unit', x.unit, 'window', x.kind, 'limit', limit_now,
        'posted', posted_now, 'held', held_now, 'suspense', suspense_now, 'requested', asked,
        'resets_at_ms', (extract(epoch FROM CASE
            WHEN x.unit <> 'in_flight' THEN window_end(x.kind, x.time_zone, b.window_key)
            WHEN a.kind = 'pool' THEN least(frees_at, (
                SELECT min(r.expires_at) FROM reservations r
                WHERE r.state = 'held' AND r.pool_id = a.id AND b.id = ANY (r.bucket_ids)
                    AND r.id <> ALL (resolved)))
            ELSE least(frees_at, (
                SELECT min(r.expires_at) FROM reservations r
                WHERE r.state = 'held' AND r.org_id = coalesce(a.org_id, a.id)
                    AND b.id = ANY (r.bucket_ids) AND r.id <> ALL (resolved)))
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

-- Applies the operations and answers each. What gives room is applied before what takes it.
-- `sweep_org_ids`, `sweep_pool_ids`: abandoned holds of these, too.
--
-- Collects the buckets that are touched without locks, locks them in one sorted sweep, and looks again:
-- what was committed meanwhile may need more. Whoever holds a bucket's lock is the only one to change a
-- reservation that lies in it. Balances are decided on in the arrays `b_*` and written once, so that a
-- bucket which a hundred operations touch is updated once.
CREATE FUNCTION apply_batch(
    operations ledger_operation[],
    horizon_ms bigint,
    sweep_org_ids bigint[] DEFAULT '{}',
    sweep_pool_ids bigint[] DEFAULT '{}'
)
RETURNS SETOF ledger_verdict
LANGUAGE plpgsql VOLATILE
-- Plans outlive the empty tables that they were made for.
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    began timestamptz := clock_timestamp();
    epoch_now integer := current_epoch();
    -- An id from further ahead than a day is no clock's error.
    ahead_ms constant bigint := 86400000;
    -- A batch that met all holds of a crashed router would outlast its time-outs: the next goes on.
    abandoned_max constant integer := 500;
    ids uuid[];
    routes ledger_route[];
    at timestamptz;             -- of the collection: what has expired, which windows are open
    moment timestamptz;         -- after the locks: of all records
    moment_ms bigint;
    waited_ms bigint;
    covered boolean;
    known_rows reservations[];
    strange_ids uuid[];         -- abandoned holds of organisations that this batch is not about
    free bigint[];              -- the buckets of those that nobody has locked
    left_behind boolean;        -- there are more abandoned holds than this batch resolves
    looked timestamptz;
    waited boolean := false;
    looks integer := 0;
    waited_min constant interval := '50 ms';
    -- Each look at what is touched finds what the one before did not know: soon there is no more.
    looks_max constant integer := 20;
    expired_ids uuid[];
    needed bigint[];
    b_ids bigint[];
    b_units budget_unit[];
    b_limits bigint[];
    b_posted bigint[];
    b_held bigint[];
    b_suspense bigint[];
    b_lapsed bigint[];
    b_soft bigint[];            -- what is spent from here on, a warning is due for
    b_frees timestamptz[];      -- in flight: when the first hold that this batch made ends
    steps ledger_step[];
    resolved uuid[];
    -- By operation.
    reasons text[];             -- NULL: done, now or before
    fresh boolean[];            -- its id was not known before
    facts jsonb[];              -- of a refusal
    remainders bigint[];        -- smallest rest of the budgets
    -- What takes room: reserves and extends that nothing but the balances can refuse.
    t_n integer[];
    t_route integer[];
    t_group integer[];
    t_amount bigint[];
    t_tokens bigint[];
    t_requests integer[];       -- 1; 0 for an extension
    t_counts boolean[];         -- nothing is held: it is counted at once
    -- The places (in b_ids) of group i's buckets are g_places[g_ends[i] + 1 .. g_ends[i + 1]].
    g_places integer[];
    g_ends integer[];
    -- The places of usable grants, by route: first the tenant's, then the provider's.
    c_places integer[];
    c_ends integer[];
    prepaid boolean[];
    s_n integer[] := '{}';      -- slices that were taken
    s_places integer[] := '{}';
    s_amounts bigint[] := '{}';
    s_sides smallint[] := '{}';
    i integer;
    k integer;
    p integer;
    c integer;
    side integer;
    reason text;
    amount bigint;
    need bigint;
    rest bigint;
    remaining bigint;
BEGIN
    SELECT array_agg(DISTINCT o.id) INTO ids FROM unnest(operations) AS o;
    IF cardinality(ids) <> cardinality(operations) THEN
        RAISE EXCEPTION 'an id is in the batch twice' USING ERRCODE = 'invalid_parameter_value';
    END IF;

    at := ledger_now();
    LOOP
        looked := clock_timestamp();
        routes := find_routes(operations, at);
        SELECT array_agg(x.id) INTO expired_ids FROM (
            (SELECT r.id FROM reservations r
            WHERE r.state = 'held' AND r.expires_at <= at AND r.org_id = ANY (
                sweep_org_ids || ARRAY(SELECT DISTINCT u.org_id FROM unnest(routes) AS u))
            ORDER BY r.expires_at LIMIT abandoned_max)
            UNION
            (SELECT r.id FROM reservations r
            WHERE r.state = 'held' AND r.expires_at <= at AND r.pool_id IS NOT NULL
                AND r.pool_id = ANY (
                    sweep_pool_ids || ARRAY(SELECT DISTINCT u.pool_id FROM unnest(routes) AS u))
            ORDER BY r.expires_at LIMIT abandoned_max)
        ) AS x;
        left_behind := coalesce(cardinality(expired_ids) >= abandoned_max, false);
        -- Abandoned holds of others, met over a pool: those whose rows somebody keeps locked are
        -- left for later. Only looked at, the locks go back: out of order they would deadlock.
        SELECT array_agg(r.id) INTO strange_ids FROM reservations r
        WHERE r.id = ANY (expired_ids) AND r.org_id <> ALL (
            sweep_org_ids || ARRAY(SELECT DISTINCT u.org_id FROM unnest(routes) AS u
                WHERE u.org_id IS NOT NULL));
        IF strange_ids IS NOT NULL THEN
            BEGIN
                SELECT array_agg(l.id) INTO free FROM (
                    SELECT b.id FROM buckets b WHERE b.id = ANY (ARRAY(
                        SELECT unnest(r.bucket_ids || r.slice_ids) FROM reservations r
                        WHERE r.id = ANY (strange_ids)))
                    FOR NO KEY UPDATE SKIP LOCKED
                ) AS l;
                RAISE EXCEPTION USING ERRCODE = 'PL001';
            EXCEPTION WHEN SQLSTATE 'PL001' THEN NULL;
            END;
            free := free || ARRAY(SELECT unnest(u.bucket_ids) FROM unnest(routes) AS u);
            SELECT array_agg(r.id) INTO expired_ids FROM reservations r
            WHERE r.id = ANY (expired_ids)
                AND (r.id <> ALL (strange_ids) OR r.bucket_ids || r.slice_ids <@ free);
            left_behind := left_behind OR NOT strange_ids <@ coalesce(expired_ids, '{}');
        END IF;
        SELECT array_agg(DISTINCT t.id) INTO needed FROM (
            SELECT unnest(u.bucket_ids || u.grant_ids || u.credit_ids) AS id
            FROM unnest(routes) AS u
            UNION ALL
            SELECT unnest(r.bucket_ids || r.slice_ids) FROM reservations r
            WHERE r.id = ANY (ids || expired_ids)
        ) AS t;
        SELECT array_agg(b.id ORDER BY b.id), array_agg(b.unit ORDER BY b.id),
            array_agg(CASE WHEN x.closed_at IS NULL THEN coalesce(g.amount, x.limit_amount) END
                ORDER BY b.id),
            array_agg(b.posted ORDER BY b.id), array_agg(b.held ORDER BY b.id),
            array_agg(b.suspense ORDER BY b.id), array_agg(b.lapsed ORDER BY b.id),
            array_agg(w.soft ORDER BY b.id)
        INTO b_ids, b_units, b_limits, b_posted, b_held, b_suspense, b_lapsed, b_soft
        FROM (
            SELECT * FROM buckets WHERE id = ANY (needed) ORDER BY id FOR NO KEY UPDATE
        ) AS b
        LEFT JOIN budgets x ON x.id = b.budget_id
        LEFT JOIN grants g ON g.id = b.grant_id
        LEFT JOIN LATERAL (
            SELECT min(ceil(x.limit_amount::numeric * per_cent / 100))::bigint AS soft
            FROM unnest(x.soft_percents) AS per_cent
            WHERE ceil(x.limit_amount::numeric * per_cent / 100) > b.posted + b.suspense
        ) AS w ON x.unit = 'nano_usd';
        moment := ledger_now();
        -- The one look at them that everything below is decided on: what commits after it is unknown
        -- here, and a new id that it took is a unique violation.
        SELECT coalesce(array_agg(r), '{}'),
            coalesce(bool_and(r.bucket_ids || r.slice_ids <@ coalesce(b_ids, '{}')), true)
        INTO known_rows, covered FROM reservations r WHERE r.id = ANY (ids || expired_ids);
        -- An extension whose reserve was committed after the routes were found has none.
        covered := covered AND NOT EXISTS (
            SELECT FROM unnest(operations) AS o JOIN unnest(known_rows) AS x ON x.id = o.id
            WHERE o.op = 'extend' AND x.state = 'held' AND NOT EXISTS (
                SELECT FROM unnest(routes) AS u
                WHERE u.key_id = x.key_id AND u.provider = x.provider AND u.model = x.model
                    AND u.tags = x.tags AND u.pool = x.pool));
        waited := NOT waited AND clock_timestamp() - looked > waited_min;
        looks := looks + 1;
        IF looks > looks_max THEN
            RAISE EXCEPTION 'a reservation lies in a bucket that is not there'
                USING ERRCODE = 'data_corrupted';
        END IF;
        -- A new minute opens new windows, and a hold belongs to the one in which it is made.
        -- What was committed while it waited for locks (a lower limit, a new budget, the end of a
        -- grant or key) holds for it.
        EXIT WHEN covered AND NOT waited
            AND date_trunc('minute', at) = date_trunc('minute', moment);
        at := moment;
    END LOOP;
    moment_ms := (extract(epoch FROM moment) * 1000)::bigint;
    waited_ms := (extract(epoch FROM clock_timestamp() - began) * 1000)::bigint;

    -- What gives room, and what is decided by the reservation alone.
    WITH known AS MATERIALIZED (
        SELECT x.*, x.state = 'held' AND x.expires_at <= at AS abandoned,
            CASE WHEN x.state = 'held' AND x.expires_at <= at THEN 'expired' ELSE x.state END AS now
        FROM unnest(known_rows) AS x
    ),
    moved AS (
        SELECT 0 AS n, x.id, 'expire'::entry_operation AS operation, x.key_id, x.bucket_ids,
            -1 AS held_sign, (x.pool = 'paid')::integer AS suspense_sign, 0 AS posted_sign,
            x.amount, 0::bigint AS posted, x.tokens, 0::bigint AS tokens_posted,
            x.slice_ids, x.slice_amounts, x.slice_sides
        FROM known x WHERE x.abandoned
        UNION ALL
        SELECT o.n, x.id,
            CASE
                WHEN o.op = 'void' THEN 'void'
                WHEN x.now = 'held' THEN 'settle'
                ELSE 'late_settle'
            END::entry_operation,
            x.key_id, x.bucket_ids,
            -(x.now = 'held')::integer, -(x.now = 'expired' AND x.pool = 'paid')::integer,
            (o.op = 'settle')::integer,
            x.amount, CASE o.op WHEN 'settle' THEN o.amount ELSE 0 END, x.tokens,
            CASE o.op WHEN 'settle' THEN o.tokens ELSE 0 END,
            x.slice_ids, x.slice_amounts, x.slice_sides
        FROM unnest(operations) AS o JOIN known x ON x.id = o.id
        WHERE o.op IN ('settle', 'void') AND x.now IN ('held', 'expired')
    )
    SELECT array_agg(ROW(
        m.n, m.id, m.operation, m.key_id, m.bucket_ids, m.held_sign, m.suspense_sign,
        m.posted_sign, 1, m.amount, m.posted, m.tokens, m.tokens_posted, m.slice_ids,
        scaled(m.slice_amounts, m.held_sign), scaled(m.slice_amounts, m.suspense_sign),
        slices_posted(m.slice_amounts, m.slice_sides, m.amount, m.posted)
    )::ledger_step ORDER BY m.n, m.id), coalesce(array_agg(m.id), '{}')
    INTO steps, resolved FROM moved m;

    SELECT array_agg(CASE
            WHEN o.op = 'reserve' THEN CASE
                WHEN x.id IS NULL THEN CASE
                    WHEN o.id_ms < moment_ms - horizon_ms THEN 'RESERVATION_ID_TOO_OLD'
                    WHEN o.id_ms > moment_ms + ahead_ms THEN 'RESERVATION_ID_IN_FUTURE'
                    WHEN o.left_ms <= waited_ms THEN 'DEADLINE_EXCEEDED'
                    ELSE u.reason
                END
                WHEN x.state = 'voided' AND x.key_id IS NULL THEN 'RESERVATION_VOIDED'
                WHEN (x.key_id, x.request_id, x.attempt, x.pool, x.provider, x.model, x.asked,
                      x.asked_tokens, x.ttl_ms, x.end_user, x.tags)
                     IS DISTINCT FROM
                     (o.key_id, o.request_id, o.attempt, o.pool::pool_kind, o.provider, o.model,
                      o.amount, o.tokens, o.ttl_ms, o.end_user, o.tags)
                THEN 'RESERVATION_ID_REUSED'
                ELSE x.refusal_reason
            END
            WHEN x.id IS NULL THEN CASE
                -- Remembered, so that its reserve, still on the way, is refused.
                WHEN o.op = 'void' AND o.id_ms >= moment_ms - horizon_ms THEN NULL
                ELSE 'RESERVATION_UNKNOWN'
            END
            WHEN x.state = 'refused' AND o.op <> 'void' THEN 'RESERVATION_REFUSED'
            WHEN x.state = 'voided' AND o.op <> 'void' THEN 'RESERVATION_VOIDED'
            WHEN x.state = 'settled' THEN CASE
                WHEN o.op = 'settle' AND (x.posted, x.prompt_tokens, x.cached_prompt_tokens,
                        x.completion_tokens, x.reasoning_tokens, x.estimated, x.outcome)
                    IS NOT DISTINCT FROM
                    (o.amount, o.prompt_tokens, o.cached_prompt_tokens, o.completion_tokens,
                     o.reasoning_tokens, o.estimated, o.outcome) THEN NULL
                ELSE 'RESERVATION_SETTLED'
            END
            WHEN o.op = 'extend' AND (x.state = 'expired' OR x.expires_at <= at)
                THEN 'RESERVATION_EXPIRED'
        END ORDER BY o.n),
        array_agg(x.id IS NULL ORDER BY o.n)
    INTO reasons, fresh
    FROM unnest(operations) AS o
    LEFT JOIN unnest(known_rows) AS x ON x.id = o.id
    LEFT JOIN unnest(routes) AS u
        ON o.op = 'reserve' AND u.key_id = o.key_id AND u.provider = o.provider
        AND u.model = o.model AND u.tags = o.tags AND u.pool = o.pool::pool_kind;

    IF steps IS NOT NULL THEN
        WITH sums AS (
            SELECT s.bucket_ids, s.requests, s.held_sign, s.suspense_sign, s.posted_sign,
                count(*) AS times, sum(s.amount) AS amount, sum(s.posted) AS posted,
                sum(s.tokens) AS tokens, sum(s.tokens_posted) AS tokens_posted
            FROM unnest(steps) AS s GROUP BY 1, 2, 3, 4, 5
        ),
        legs AS (
            SELECT t.id, sum(s.held_sign * c.counts) AS held,
                sum(CASE b.unit WHEN 'in_flight' THEN 0 ELSE s.suspense_sign * c.counts END)
                    AS suspense,
                sum(s.posted_sign * CASE b.unit
                    WHEN 'nano_usd' THEN s.posted WHEN 'tokens' THEN s.tokens_posted
                    WHEN 'requests' THEN s.times ELSE 0 END) AS posted
            FROM sums s, unnest(s.bucket_ids) AS t (id)
            JOIN unnest(b_ids, b_units) AS b (id, unit) USING (id)
            CROSS JOIN LATERAL (SELECT CASE b.unit
                WHEN 'nano_usd' THEN s.amount WHEN 'tokens' THEN s.tokens ELSE s.times END
            ) AS c (counts)
            GROUP BY t.id
            UNION ALL
            SELECT t.id, sum(t.held), sum(t.suspense), sum(t.posted)
            FROM unnest(steps) AS s,
                unnest(s.slice_ids, s.slice_held, s.slice_suspense, s.slice_posted)
                    AS t (id, held, suspense, posted)
            GROUP BY t.id
        )
        SELECT array_agg((b.posted + coalesce(l.posted, 0))::bigint ORDER BY b.place),
            array_agg((b.held + coalesce(l.held, 0))::bigint ORDER BY b.place),
            array_agg((b.suspense + coalesce(l.suspense, 0))::bigint ORDER BY b.place)
        INTO b_posted, b_held, b_suspense
        FROM unnest(b_ids, b_posted, b_held, b_suspense) WITH ORDINALITY
            AS b (id, posted, held, suspense, place)
        LEFT JOIN legs l ON l.id = b.id;
    END IF;

    -- What takes room.
    SELECT array_agg(w.n ORDER BY w.n), array_agg(w.route ORDER BY w.n),
        array_agg(w.route + w.own ORDER BY w.n), array_agg(w.amount ORDER BY w.n),
        array_agg(w.tokens ORDER BY w.n), array_agg(w.requests ORDER BY w.n),
        array_agg(w.counts ORDER BY w.n)
    INTO t_n, t_route, t_group, t_amount, t_tokens, t_requests, t_counts
    FROM (
        SELECT o.n, u.place AS route, 0 AS own, o.amount, o.tokens, 1 AS requests,
            u.pool = 'cache' AS counts
        FROM unnest(operations) AS o
        -- Outer joins: without a route nothing is admitted, the batch fails.
        LEFT JOIN unnest(routes) AS u
            ON u.key_id = o.key_id AND u.provider = o.provider AND u.model = o.model
            AND u.tags = o.tags AND u.pool = o.pool::pool_kind
        WHERE o.op = 'reserve' AND reasons[o.n] IS NULL AND fresh[o.n]
        UNION ALL
        -- In the windows in which it was made: a group of its own, after those of the routes.
        SELECT o.n, u.place, cardinality(routes) - u.place
                + (row_number() OVER (ORDER BY o.n))::integer,
            greatest(o.amount - x.amount, 0), greatest(o.tokens - x.tokens, 0), 0, false
        FROM unnest(operations) AS o
        JOIN unnest(known_rows) AS x ON x.id = o.id
        LEFT JOIN unnest(routes) AS u
            ON u.key_id = x.key_id AND u.provider = x.provider AND u.model = x.model
            AND u.tags = x.tags AND u.pool = x.pool
        WHERE o.op = 'extend' AND reasons[o.n] IS NULL
            AND (o.amount > x.amount OR o.tokens > x.tokens)
    ) AS w;

    IF t_n IS NOT NULL THEN
        WITH groups AS (
            SELECT u.place AS i, u.bucket_ids FROM unnest(routes) AS u
            UNION ALL
            SELECT t.i, x.bucket_ids
            FROM unnest(t_n, t_group) AS t (n, i)
            JOIN unnest(known_rows) AS x ON x.id = (operations[t.n]).id
            WHERE t.i > cardinality(routes)
        )
        SELECT array_agg(m.place ORDER BY m.i, m.level) FILTER (WHERE m.place IS NOT NULL),
            (SELECT array_agg(e.ends ORDER BY e.i) FROM (
                SELECT i, sum(cardinality(bucket_ids)) OVER (ORDER BY i) AS ends FROM groups) AS e)
        INTO g_places, g_ends
        FROM (
            SELECT g.i, l.level, b.place::integer
            FROM groups g, unnest(g.bucket_ids) WITH ORDINALITY AS l (id, level)
            JOIN unnest(b_ids) WITH ORDINALITY AS b (id, place) USING (id)
        ) AS m;
        -- Two groups a route: of the tenant, of the provider.
        SELECT array_agg(m.place ORDER BY m.i, m.turn) FILTER (WHERE m.place IS NOT NULL),
            (SELECT array_agg(e.ends ORDER BY e.i) FROM (
                SELECT c.i, sum(coalesce(cardinality(c.ids), 0)) OVER (ORDER BY c.i) AS ends
                FROM unnest(routes) AS u,
                    LATERAL (VALUES (2 * u.place - 1, u.grant_ids), (2 * u.place, u.credit_ids))
                        AS c (i, ids)) AS e),
            (SELECT array_agg(v.is_prepaid ORDER BY u.place, v.side)
                FROM unnest(routes) AS u, LATERAL (VALUES
                    (0, u.prepaid_id IS NOT NULL), (1, u.prepaid_pool_id IS NOT NULL))
                    AS v (side, is_prepaid))
        INTO c_places, c_ends, prepaid
        FROM (
            SELECT c.i, l.turn, b.place::integer
            FROM unnest(routes) AS u,
                LATERAL (VALUES (2 * u.place - 1, u.grant_ids), (2 * u.place, u.credit_ids))
                    AS c (i, ids),
                unnest(c.ids) WITH ORDINALITY AS l (id, turn)
            JOIN unnest(b_ids) WITH ORDINALITY AS b (id, place) USING (id)
        ) AS m;
        g_ends := 0 || g_ends;
        c_ends := 0 || c_ends;
        facts := array_fill(NULL::jsonb, ARRAY[cardinality(operations)]);
        remainders := array_fill(NULL::bigint, ARRAY[cardinality(operations)]);
    END IF;

    FOR i IN 1 .. coalesce(cardinality(t_n), 0) LOOP
        amount := t_amount[i];
        reason := NULL;
        remaining := NULL;
        -- Each bucket of the path must have room …
        FOR k IN g_ends[t_group[i]] + 1 .. g_ends[t_group[i] + 1] LOOP
            p := g_places[k];
            need := CASE b_units[p]
                WHEN 'nano_usd' THEN amount WHEN 'tokens' THEN t_tokens[i] ELSE t_requests[i] END;
            rest := b_limits[p] - b_posted[p] - b_held[p] - b_suspense[p];
            IF need > rest AND (need > 0 OR t_requests[i] > 0) THEN
                reason := CASE b_units[p]
                    WHEN 'nano_usd' THEN 'BUDGET_EXCEEDED' ELSE 'RATE_LIMITED' END;
                facts[t_n[i]] := refusal_of(
                    b_ids[p], b_limits[p], b_posted[p], b_held[p], b_suspense[p], need, resolved,
                    b_frees[p]);
                IF t_requests[i] = 0 AND b_units[p] = 'tokens' THEN
                    -- An extension counts in the window of its hold, which no later one relieves.
                    facts[t_n[i]] := facts[t_n[i]] || '{"resets_at_ms": null}';
                END IF;
                EXIT;
            END IF;
            IF b_units[p] = 'nano_usd' THEN
                remaining := least(remaining, rest - need);
            END IF;
        END LOOP;
        -- … and the prepaid ones must have credit.
        FOR side IN 0 .. 1 LOOP
            EXIT WHEN reason IS NOT NULL OR amount = 0;
            c := 2 * t_route[i] - 1 + side;
            CONTINUE WHEN NOT prepaid[c];
            rest := 0;
            FOR k IN c_ends[c] + 1 .. c_ends[c + 1] LOOP
                p := c_places[k];
                rest := rest + greatest(
                    b_limits[p] - b_posted[p] - b_held[p] - b_suspense[p] - b_lapsed[p], 0);
            END LOOP;
            IF rest < amount THEN
                reason := 'CREDIT_EXHAUSTED';
                facts[t_n[i]] := credit_refusal_of(CASE side
                    WHEN 0 THEN (routes[t_route[i]]).prepaid_id
                    ELSE (routes[t_route[i]]).prepaid_pool_id END, rest, amount);
            END IF;
        END LOOP;
        IF reason IS NOT NULL AND left_behind THEN
            -- There may be room behind the abandoned holds that are left for the next batch: this is
            -- no verdict, and is not remembered.
            reason := 'ABANDONED_HOLDS';
            facts[t_n[i]] := NULL;
        END IF;
        IF reason IS NOT NULL THEN
            reasons[t_n[i]] := reason;
            CONTINUE;
        END IF;
        remainders[t_n[i]] := remaining;

        FOR k IN g_ends[t_group[i]] + 1 .. g_ends[t_group[i] + 1] LOOP
            p := g_places[k];
            IF t_counts[i] THEN
                b_posted[p] := b_posted[p] + 1;
            ELSIF b_units[p] = 'nano_usd' THEN
                b_held[p] := b_held[p] + amount;
            ELSIF b_units[p] = 'tokens' THEN
                b_held[p] := b_held[p] + t_tokens[i];
            ELSE
                b_held[p] := b_held[p] + t_requests[i];
                IF b_units[p] = 'in_flight' AND t_requests[i] > 0 THEN
                    b_frees[p] := least(b_frees[p], moment
                        + (operations[t_n[i]]).ttl_ms * interval '1 millisecond');
                END IF;
            END IF;
        END LOOP;
        CONTINUE WHEN c_places IS NULL;
        FOR side IN 0 .. 1 LOOP
            c := 2 * t_route[i] - 1 + side;
            rest := amount;
            FOR k IN c_ends[c] + 1 .. c_ends[c + 1] LOOP
                EXIT WHEN rest = 0;
                p := c_places[k];
                need := least(
                    rest, b_limits[p] - b_posted[p] - b_held[p] - b_suspense[p] - b_lapsed[p]);
                CONTINUE WHEN need <= 0;
                b_held[p] := b_held[p] + need;
                rest := rest - need;
                s_n := s_n || t_n[i];
                s_places := s_places || p;
                s_amounts := s_amounts || need;
                s_sides := s_sides || side::smallint;
            END LOOP;
        END LOOP;
    END LOOP;

    UPDATE buckets b SET posted = u.posted, held = u.held, suspense = u.suspense
    FROM unnest(b_ids, b_posted, b_held, b_suspense) AS u (id, posted, held, suspense)
    WHERE b.id = u.id
        AND (b.posted, b.held, b.suspense) IS DISTINCT FROM (u.posted, u.held, u.suspense);

    -- A new id that another transaction took meanwhile is a unique violation: the batch starts again
    -- and then sees what that one did.
    INSERT INTO reservations (
        id, state, created_at, org_id, pool_id, key_id, request_id, attempt, pool, provider, model,
        asked, asked_tokens, ttl_ms, end_user, tags, amount, tokens, bucket_ids, slice_ids,
        slice_amounts, slice_sides, expires_at, remaining, refusal_reason, refusal, resolved_at)
    SELECT o.id, w.state, moment, u.org_id, u.pool_id, o.key_id, o.request_id, o.attempt, u.pool,
        o.provider, o.model, o.amount, o.tokens, o.ttl_ms, o.end_user, o.tags,
        CASE w.state WHEN 'held' THEN o.amount ELSE 0 END,
        CASE w.state WHEN 'held' THEN o.tokens ELSE 0 END,
        CASE w.state WHEN 'refused' THEN '{}' ELSE u.bucket_ids END,
        s.ids, s.amounts, s.sides,
        CASE w.state WHEN 'held' THEN moment + o.ttl_ms * interval '1 millisecond' END,
        remainders[o.n], reasons[o.n], facts[o.n],
        CASE w.state WHEN 'held' THEN NULL ELSE moment END
    FROM unnest(operations) AS o
    JOIN unnest(routes) AS u
        ON u.key_id = o.key_id AND u.provider = o.provider AND u.model = o.model
        AND u.tags = o.tags AND u.pool = o.pool::pool_kind
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN reasons[o.n] IS NOT NULL THEN 'refused'
            WHEN u.pool = 'cache' THEN 'settled'
            ELSE 'held'
        END::reservation_state AS state
    ) AS w
    LEFT JOIN (
        SELECT n, array_agg(b_ids[place] ORDER BY turn) AS ids,
            array_agg(a ORDER BY turn) AS amounts, array_agg(side ORDER BY turn) AS sides
        FROM unnest(s_n, s_places, s_amounts, s_sides) WITH ORDINALITY
            AS t (n, place, a, side, turn)
        GROUP BY n
    ) AS s ON s.n = o.n
    WHERE o.op = 'reserve' AND fresh[o.n] AND coalesce(reasons[o.n] NOT IN (
        'RESERVATION_ID_TOO_OLD', 'RESERVATION_ID_IN_FUTURE', 'DEADLINE_EXCEEDED', 'KEY_UNKNOWN',
        'ABANDONED_HOLDS'
    ), true)
    UNION ALL
    SELECT o.id, 'voided', moment, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
        NULL, NULL, 0, 0, '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, moment
    FROM unnest(operations) AS o
    WHERE o.op = 'void' AND fresh[o.n] AND reasons[o.n] IS NULL;

    UPDATE reservations AS x SET
        state = CASE s.operation
            WHEN 'expire' THEN 'expired' WHEN 'void' THEN 'voided' ELSE 'settled'
        END::reservation_state,
        resolved_at = moment,
        posted = s.posted,
        released = greatest(-(s.held_sign + s.suspense_sign) * s.amount - s.posted, 0),
        overage = s.posted > s.amount,
        late = s.n > 0 AND s.held_sign = 0,
        prompt_tokens = o.prompt_tokens, cached_prompt_tokens = o.cached_prompt_tokens,
        completion_tokens = o.completion_tokens, reasoning_tokens = o.reasoning_tokens,
        estimated = coalesce(o.estimated, false), outcome = o.outcome, trace_id = o.trace_id
    FROM (SELECT DISTINCT ON (u.id) u.* FROM unnest(steps) AS u ORDER BY u.id, u.n DESC) AS s
    LEFT JOIN unnest(operations) AS o ON o.n = s.n
    WHERE x.id = s.id;

    UPDATE reservations AS x SET
        amount = greatest(x.amount, o.amount),
        tokens = greatest(x.tokens, o.tokens),
        expires_at = greatest(x.expires_at, moment + o.ttl_ms * interval '1 millisecond'),
        remaining = coalesce(remainders[o.n], x.remaining),
        slice_ids = x.slice_ids || s.ids,
        slice_amounts = x.slice_amounts || s.amounts,
        slice_sides = x.slice_sides || s.sides
    FROM unnest(operations) AS o
    LEFT JOIN (
        SELECT n, array_agg(b_ids[place] ORDER BY turn) AS ids,
            array_agg(a ORDER BY turn) AS amounts, array_agg(side ORDER BY turn) AS sides
        FROM unnest(s_n, s_places, s_amounts, s_sides) WITH ORDINALITY
            AS t (n, place, a, side, turn)
        GROUP BY n
    ) AS s ON s.n = o.n
    WHERE o.op = 'extend' AND reasons[o.n] IS NULL AND x.id = o.id;

    INSERT INTO entries (
        epoch, at, operation, reservation_id, account_id, bucket_ids, available, held, suspense,
        posted, slice_ids, slice_held, slice_suspense, slice_posted)
    SELECT epoch_now, moment, s.operation, s.id, s.key_id, s.bucket_ids,
        -((s.held_sign + s.suspense_sign) * s.amount + s.posted), s.held_sign * s.amount,
        s.suspense_sign * s.amount, s.posted, s.slice_ids, s.slice_held, s.slice_suspense,
        s.slice_posted
    FROM unnest(steps) AS s
    UNION ALL
    SELECT epoch_now, moment,
        CASE WHEN t.counts THEN 'count' WHEN t.requests = 0 THEN 'extend' ELSE 'reserve'
        END::entry_operation,
        x.id, x.key_id, x.bucket_ids, -t.amount, t.amount, 0, 0, s.ids, s.amounts, s.zeros, s.zeros
    FROM unnest(t_n, t_amount, t_requests, t_counts) AS t (n, amount, requests, counts)
    JOIN reservations x ON x.id = (operations[t.n]).id
    LEFT JOIN (
        SELECT n, array_agg(b_ids[place] ORDER BY turn) AS ids,
            array_agg(a ORDER BY turn) AS amounts, array_agg(0::bigint) AS zeros
        FROM unnest(s_n, s_places, s_amounts) WITH ORDINALITY AS t (n, place, a, turn)
        GROUP BY n
    ) AS s ON s.n = t.n
    WHERE reasons[t.n] IS NULL;

    INSERT INTO alerts (alert_key, kind, at, account_id, detail)
    SELECT f.kind || ':' || s.id, f.kind, moment, s.key_id, jsonb_build_object(
        'reservation_id', s.id, 'amount_nano_usd', s.amount, 'posted_nano_usd', s.posted)
    FROM unnest(steps) AS s, LATERAL (VALUES
        ('overage', s.posted > s.amount),
        -- Whoever reconciles knows.
        ('late_settle', s.operation = 'late_settle'
            AND (operations[s.n]).outcome IS DISTINCT FROM 'RECONCILED')) AS f (kind, is_so)
    WHERE f.is_so
    UNION ALL
    SELECT format('threshold:%s:%s', u.id, per_cent), 'budget_threshold', moment, x.account_id,
        jsonb_build_object(
            'budget_id', x.id, 'budget_name', x.name, 'window', x.kind, 'percent', per_cent,
            'limit_nano_usd', x.limit_amount, 'spent_nano_usd', u.posted + u.suspense,
            'resets_at_ms',
            (extract(epoch FROM window_end(x.kind, x.time_zone, b.window_key)) * 1000)::bigint)
    FROM unnest(b_ids, b_posted, b_suspense, b_soft) AS u (id, posted, suspense, soft)
    JOIN buckets b ON b.id = u.id
    JOIN budgets x ON x.id = b.budget_id,
        unnest(x.soft_percents) AS per_cent
    WHERE u.posted + u.suspense >= u.soft
        AND u.posted + u.suspense >= ceil(x.limit_amount::numeric * per_cent / 100)
    ON CONFLICT DO NOTHING;

    RETURN QUERY SELECT o.n, reasons[o.n],
        CASE WHEN reasons[o.n] IS NOT NULL THEN coalesce(facts[o.n], x.refusal) END,
        x.amount, x.expires_at, coalesce(remainders[o.n], x.remaining), x.posted, x.released,
        coalesce(x.overage, false), coalesce(x.late, false), moment
    FROM unnest(operations) AS o LEFT JOIN reservations x ON x.id = o.id
    ORDER BY o.n;
END
$$;

-- What an ended grant has left, and what comes back to it later, lapses by an entry of its own.
CREATE FUNCTION lapse_grants(batch_max integer DEFAULT 500) RETURNS integer
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    epoch_now integer := current_epoch();
    lapsed_count integer;
BEGIN
    WITH ended AS (
        SELECT b.id, g.account_id, g.amount - b.posted - b.held - b.suspense - b.lapsed AS rest
        FROM grants g JOIN LATERAL (
            SELECT * FROM buckets u WHERE u.grant_id = g.id
                -- Here, so that those which have nothing left are not locked each time.
                AND u.posted + u.held + u.suspense + u.lapsed < g.amount
            ORDER BY u.id FOR NO KEY UPDATE SKIP LOCKED
        ) AS b ON true
        WHERE g.expires_at <= ledger_now()
            AND b.posted + b.held + b.suspense + b.lapsed < g.amount
        ORDER BY b.id LIMIT batch_max
    ),
    moved AS (
        UPDATE buckets b SET lapsed = b.lapsed + e.rest FROM ended e WHERE b.id = e.id
        RETURNING b.id, e.account_id, e.rest
    )
    INSERT INTO entries (
        epoch, at, operation, account_id, bucket_ids,
        slice_ids, slice_held, slice_suspense, slice_posted, slice_lapsed)
    SELECT epoch_now, ledger_now(), 'lapse', account_id, '{}',
        ARRAY[id], '{0}', '{0}', '{0}', ARRAY[rest]
    FROM moved;
    GET DIAGNOSTICS lapsed_count = ROW_COUNT;
    RETURN lapsed_count;
END
$$;
