-- One batch is one round trip and one commit.

-- The buckets that a batch touches: the open windows on the paths of the keys, and whatever the named
-- reservations and the expired holds of these organisations lie in. Sorted.
CREATE FUNCTION touched_buckets(key_ids bigint[], ids uuid[], org_ids bigint[], at timestamptz)
RETURNS bigint[]
LANGUAGE sql STABLE AS $$
    SELECT coalesce(array_agg(t.id ORDER BY t.id), '{}') FROM (
        SELECT b.id
        FROM accounts a
        JOIN budgets x ON x.account_id IN (a.org_id, a.team_id, a.id)
        JOIN buckets b
            ON b.budget_id = x.id AND b.window_key = window_key(x.kind, x.time_zone, at)
        WHERE a.id = ANY (key_ids) AND a.kind = 'key'
        UNION
        SELECT unnest(r.bucket_ids) FROM reservations r WHERE r.id = ANY (ids)
        UNION
        SELECT unnest(r.bucket_ids) FROM reservations r
        WHERE r.state = 'held' AND r.org_id = ANY (org_ids) AND r.expires_at <= at
    ) AS t
$$;

CREATE FUNCTION create_buckets(key_ids bigint[], at timestamptz) RETURNS void
LANGUAGE sql VOLATILE AS $$
    INSERT INTO buckets (budget_id, window_key)
    SELECT DISTINCT x.id, window_key(x.kind, x.time_zone, at)
    FROM accounts a
    JOIN budgets x ON x.account_id IN (a.org_id, a.team_id, a.id)
    WHERE a.id = ANY (key_ids) AND a.kind = 'key'
        AND NOT EXISTS (
            SELECT FROM buckets b
            WHERE b.budget_id = x.id AND b.window_key = window_key(x.kind, x.time_zone, at)
        )
    ORDER BY 1
    ON CONFLICT DO NOTHING
$$;

-- Collects without locks, locks in one sorted sweep, collects again: what was committed meanwhile may
-- need more. Whoever holds a bucket's lock is the only one to change a reservation that lies in it.
CREATE FUNCTION lock_buckets(
    key_ids bigint[], ids uuid[], org_ids bigint[], OUT bucket_ids bigint[], OUT at timestamptz
)
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    needed bigint[];
BEGIN
    at := ledger_now();
    bucket_ids := '{}';
    LOOP
        PERFORM create_buckets(key_ids, at);
        needed := touched_buckets(key_ids, ids, org_ids, at);
        EXIT WHEN needed <@ bucket_ids;
        PERFORM FROM buckets b WHERE b.id = ANY (needed) ORDER BY b.id FOR NO KEY UPDATE;
        bucket_ids := ARRAY(SELECT unnest(bucket_ids) UNION SELECT unnest(needed) ORDER BY 1);
        at := ledger_now();
    END LOOP;
END
$$;

-- The paths of the keys: their state and, outermost level first, the open buckets of their budgets. A
-- budget that was committed after the locks were taken does not count yet.
CREATE FUNCTION paths(key_ids bigint[], locked_ids bigint[], at timestamptz)
RETURNS TABLE (key_id bigint, org_id bigint, reason text, bucket_ids bigint[])
LANGUAGE sql STABLE AS $$
    SELECT a.id, a.org_id,
        CASE
            WHEN k.revoked_at IS NOT NULL THEN 'KEY_REVOKED'
            WHEN k.expires_at <= at THEN 'KEY_EXPIRED'
            WHEN o.suspended OR t.suspended THEN 'ACCOUNT_SUSPENDED'
            WHEN p.bucket_ids IS NULL THEN 'BUDGET_MISSING'
        END,
        p.bucket_ids
    FROM accounts a
    JOIN api_keys k ON k.account_id = a.id
    JOIN accounts t ON t.id = a.team_id
    JOIN accounts o ON o.id = a.org_id
    LEFT JOIN LATERAL (
        SELECT array_agg(b.id ORDER BY l.kind, x.kind) AS bucket_ids
        FROM budgets x
        JOIN accounts l ON l.id = x.account_id
        JOIN buckets b
            ON b.budget_id = x.id AND b.window_key = window_key(x.kind, x.time_zone, at)
        WHERE x.account_id IN (a.org_id, a.team_id, a.id) AND b.id = ANY (locked_ids)
    ) AS p ON true
    WHERE a.id = ANY (key_ids)
$$;

-- The facts of a budget that has too little left, for the caller's eyes. The balances are those within
-- the batch, not yet written.
CREATE FUNCTION refusal_of(
    bucket bigint, posted_now bigint, held_now bigint, suspense_now bigint, asked bigint
)
RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'budget_id', x.id, 'budget_name', x.name, 'account_kind', a.kind, 'account_id', a.id,
        'window', x.kind, 'limit_nano_usd', x.limit_nano_usd, 'posted_nano_usd', posted_now,
        'held_nano_usd', held_now, 'suspense_nano_usd', suspense_now, 'requested_nano_usd', asked,
        'resets_at_ms',
        (extract(epoch FROM window_end(x.kind, x.time_zone, b.window_key)) * 1000)::bigint
    )
    FROM buckets b JOIN budgets x ON x.id = b.budget_id JOIN accounts a ON a.id = x.account_id
    WHERE b.id = bucket
$$;

CREATE TYPE ledger_answer AS (
    n integer,
    reason text,                -- NULL: done
    refusal jsonb,              -- with BUDGET_EXCEEDED
    expires_at timestamptz,
    remaining bigint,
    posted bigint,
    released bigint,
    overage boolean,
    late boolean
);

-- Applies the operations in order and answers each. `sweep_org_ids`: expired holds of these too.
-- Everything is decided on copies in arrays (`b_`: buckets, `r_`: reservations) and written once, so
-- that a bucket which a hundred operations touch is updated once.
CREATE FUNCTION apply_batch(operations jsonb, horizon_ms bigint, sweep_org_ids bigint[] DEFAULT '{}')
RETURNS SETOF ledger_answer
LANGUAGE plpgsql VOLATILE
-- Plans outlive the empty tables that they were made for.
SET enable_seqscan = off
AS $$
DECLARE
    began timestamptz := clock_timestamp();
    waited_ms bigint;
    moment timestamptz;
    moment_ms bigint;
    -- An id from further ahead than a day is no clock's error.
    ahead_ms constant bigint := 86400000;
    keys bigint[];
    orgs bigint[];
    b_ids bigint[];
    b_limit bigint[];
    b_posted bigint[];
    b_held bigint[];
    b_suspense bigint[];
    r_ids uuid[];
    r_rows reservations[];      -- a NULL row: not seen before
    r_new boolean[];
    r_changed boolean[];
    moved entries[] := '{}';
    op record;
    o ledger_operation;
    r reservations;
    s ledger_step;
    e entries;
    a ledger_answer;
    i integer;
    rest bigint;
    bucket bigint;
BEGIN
    SELECT array_agg(DISTINCT x.key_id) FILTER (WHERE x.op = 'reserve'), array_agg(DISTINCT x.id)
    INTO keys, r_ids
    FROM jsonb_to_recordset(operations) AS x (op text, id uuid, key_id bigint);
    SELECT sweep_org_ids || array_agg(DISTINCT x.org_id) INTO orgs
    FROM accounts x WHERE x.id = ANY (keys);

    SELECT l.bucket_ids, l.at INTO b_ids, moment FROM lock_buckets(keys, r_ids, orgs) AS l;
    moment_ms := (extract(epoch FROM moment) * 1000)::bigint;
    waited_ms := (extract(epoch FROM clock_timestamp() - began) * 1000)::bigint;

    SELECT array_agg(x.limit_nano_usd ORDER BY b.id), array_agg(b.posted ORDER BY b.id),
        array_agg(b.held ORDER BY b.id), array_agg(b.suspense ORDER BY b.id)
    INTO b_limit, b_posted, b_held, b_suspense
    FROM buckets b JOIN budgets x ON x.id = b.budget_id WHERE b.id = ANY (b_ids);
    SELECT array_agg(w.id ORDER BY w.id), array_agg(x ORDER BY w.id),
        array_agg(x.id IS NULL ORDER BY w.id), array_agg(false)
    INTO r_ids, r_rows, r_new, r_changed
    FROM (
        SELECT unnest(r_ids) AS id
        UNION
        SELECT h.id FROM reservations h
        WHERE h.state = 'held' AND h.org_id = ANY (orgs) AND h.expires_at <= moment
            AND h.bucket_ids <@ b_ids
    ) AS w
    LEFT JOIN reservations x ON x.id = w.id;

    FOR op IN
        SELECT 0 AS n, NULL::ledger_operation AS o, w.place, NULL::bigint AS org_id,
            NULL::text AS reason, NULL::bigint[] AS bucket_ids
        FROM unnest(r_ids) WITH ORDINALITY AS w (id, place)
        JOIN reservations x ON x.id = w.id
        WHERE x.state = 'held' AND x.expires_at <= moment
        UNION ALL
        SELECT x.n, x, w.place, p.org_id, coalesce(p.reason, CASE WHEN p IS NULL THEN 'KEY_UNKNOWN' END),
            p.bucket_ids
        FROM jsonb_populate_recordset(NULL::ledger_operation, operations) AS x
        JOIN unnest(r_ids) WITH ORDINALITY AS w (id, place) ON w.id = x.id
        LEFT JOIN paths(keys, b_ids, moment) AS p ON p.key_id = x.key_id
        ORDER BY 1
    LOOP
        o := op.o;
        r := r_rows[op.place];
        s := NULL;
        a := NULL;
        a.n := op.n;
        IF op.n = 0 THEN
            CONTINUE WHEN r.state IS DISTINCT FROM 'held';
            s := expire_step(r, moment);
        ELSIF o.op = 'settle' THEN
            s := settle_step(r, o, moment);
        ELSIF o.op = 'void' THEN
            IF r.id IS NULL AND o.id_ms < moment_ms - horizon_ms THEN
                s.reason := 'RESERVATION_UNKNOWN';
            ELSE
                s := void_step(r, o, moment);
            END IF;
        ELSIF r.id IS NOT NULL THEN
            s.reason := repeat_reason(r, o);
            s.after := r;
        ELSIF o.id_ms < moment_ms - horizon_ms THEN
            s.reason := 'RESERVATION_ID_TOO_OLD';
        ELSIF o.id_ms > moment_ms + ahead_ms THEN
            s.reason := 'RESERVATION_ID_IN_FUTURE';
        ELSIF o.left_ms <= waited_ms THEN
            s.reason := 'DEADLINE_EXCEEDED';
        ELSIF op.reason = 'KEY_UNKNOWN' THEN
            s.reason := op.reason;
        ELSE
            r := NULL;
            r.id := o.id;
            r.created_at := moment;
            r.org_id := op.org_id;
            r.key_id := o.key_id;
            r.request_id := o.request_id;
            r.attempt := o.attempt;
            r.pool := o.pool;
            r.provider := o.provider;
            r.model := o.model;
            r.amount := o.amount;
            r.ttl_ms := o.ttl_ms;
            r.end_user := o.end_user;
            r.tags := o.tags;
            r.posted := 0;
            r.released := 0;
            r.overage := false;
            r.late := false;
            r.estimated := false;
            r.refusal_reason := op.reason;
            IF op.reason IS NULL THEN
                FOREACH bucket IN ARRAY op.bucket_ids LOOP
                    i := array_position(b_ids, bucket);
                    rest := b_limit[i] - b_posted[i] - b_held[i] - b_suspense[i];
                    IF o.amount > rest THEN
                        r.refusal_reason := 'BUDGET_EXCEEDED';
                        r.refusal := refusal_of(
                            bucket, b_posted[i], b_held[i], b_suspense[i], o.amount);
                        EXIT;
                    END IF;
                    r.remaining := least(r.remaining, rest - o.amount);
                END LOOP;
            END IF;
            IF r.refusal_reason IS NULL THEN
                r.state := 'held';
                r.bucket_ids := op.bucket_ids;
                r.expires_at := moment + o.ttl_ms * interval '1 millisecond';
                s.operation := 'reserve';
                s.held := o.amount;
                s.suspense := 0;
                s.posted := 0;
            ELSE
                r.state := 'refused';
                r.remaining := NULL;
                r.bucket_ids := '{}';
                s.reason := r.refusal_reason;
            END IF;
            s.after := r;
            r_changed[op.place] := true;
        END IF;

        r := s.after;
        IF s.operation IS NOT NULL THEN
            r_changed[op.place] := true;
            FOREACH bucket IN ARRAY r.bucket_ids LOOP
                i := array_position(b_ids, bucket);
                b_held[i] := b_held[i] + s.held;
                b_suspense[i] := b_suspense[i] + s.suspense;
                b_posted[i] := b_posted[i] + s.posted;
            END LOOP;
            e.at := moment;
            e.operation := s.operation;
            e.reservation_id := r.id;
            e.key_id := r.key_id;
            e.bucket_ids := r.bucket_ids;
            e.available := -(s.held + s.suspense + s.posted);
            e.held := s.held;
            e.suspense := s.suspense;
            e.posted := s.posted;
            moved := array_append(moved, e);
        ELSIF s.reason IS NULL AND r_rows[op.place].id IS NULL THEN
            r_changed[op.place] := true;  -- a void that came before its reserve
        END IF;
        IF r_changed[op.place] THEN
            r_rows[op.place] := r;
        END IF;
        CONTINUE WHEN op.n = 0;
        a.reason := s.reason;
        a.refusal := r.refusal;
        a.expires_at := r.expires_at;
        a.remaining := r.remaining;
        a.posted := r.posted;
        a.released := r.released;
        a.overage := r.overage;
        a.late := r.late;
        RETURN NEXT a;
    END LOOP;

    UPDATE buckets b SET posted = u.posted, held = u.held, suspense = u.suspense
    FROM unnest(b_ids, b_posted, b_held, b_suspense) AS u (id, posted, held, suspense)
    WHERE b.id = u.id
        AND (b.posted, b.held, b.suspense) IS DISTINCT FROM (u.posted, u.held, u.suspense);
    -- A new id that another transaction took meanwhile is a unique violation: the batch starts again
    -- and then sees what that one did.
    INSERT INTO reservations
    SELECT x.* FROM unnest(r_rows) AS x
    WHERE x.id IN (
        SELECT w.id FROM unnest(r_ids, r_new, r_changed) AS w (id, is_new, is_changed)
        WHERE w.is_new AND w.is_changed
    );
    UPDATE reservations AS old SET
        state = x.state, resolved_at = x.resolved_at, posted = x.posted, released = x.released,
        overage = x.overage, late = x.late, prompt_tokens = x.prompt_tokens,
        cached_prompt_tokens = x.cached_prompt_tokens, completion_tokens = x.completion_tokens,
        reasoning_tokens = x.reasoning_tokens, estimated = x.estimated, outcome = x.outcome,
        trace_id = x.trace_id
    FROM unnest(r_rows) WITH ORDINALITY AS x
    WHERE old.id = x.id AND NOT r_new[x.ordinality] AND r_changed[x.ordinality];
    INSERT INTO entries (
        at, operation, reservation_id, key_id, bucket_ids, available, held, suspense, posted)
    SELECT x.at, x.operation, x.reservation_id, x.key_id, x.bucket_ids, x.available, x.held,
        x.suspense, x.posted
    FROM unnest(moved) WITH ORDINALITY AS x ORDER BY x.ordinality;
END
$$;
