-- One batch is one round trip and one commit.
-- Small batches are many, and then it is the number of statements and their size that costs: what the
-- operations come to is worked out in arrays.

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
-- Of what it calls, too. Making a plan takes longer than a small batch does, and plans outlive the
-- empty tables that they were made for: whatever the sizes, what is looked up is looked up by an index,
-- in the order in which it is written. OFFSET 0, and in an update `x = ANY (ARRAY[y])`, leave PostgreSQL
-- no other way: while a table is small, to read all of an index looks as good.
SET plan_cache_mode = force_generic_plan
SET join_collapse_limit = 1
SET from_collapse_limit = 1
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_material = off
SET enable_memoize = off
AS $$
#variable_conflict use_column
DECLARE
    began timestamptz := clock_timestamp();
    epoch_now integer := current_epoch();
    -- An id from further ahead than a day is no clock's error.
    ahead_ms constant bigint := 86400000;
    -- Each look at what is touched finds what the one before did not know: soon there is no more.
    looks_max constant integer := 20;
    -- Where an organisation is changed all the while, the batch begins anew a little later.
    changes_max constant integer := 10;
    looks integer := 0;
    version bigint;
    waited_ms bigint;
    at timestamptz;                 -- of a look: what has expired, which windows are open
    moment timestamptz := ledger_now(); -- after the locks: of all records
    moment_ms bigint;
    operation_ids uuid[] := '{}';
    ids uuid[];                     -- of the operations, then the abandoned holds
    distinct_ids integer;
    path record;                    -- of find_routes
    abandoned record;               -- of find_abandoned
    known reservations[];           -- by `ids`; NULL: unknown
    -- The buckets, in the order of their ids.
    b_ids bigint[];
    b_units budget_unit[];
    b_limits bigint[];              -- NULL: none
    b_posted bigint[];
    b_held bigint[];
    b_suspense bigint[];
    b_lapsed bigint[];
    b_soft bigint[];                -- what is spent from here on, a warning is due for
    ended_ids bigint[];             -- whose grant has ended
    b_frees_ms bigint[] := '{}';    -- in flight: when the first hold that this batch made ends
    b_facts jsonb[] := '{}';        -- of a refusal
    steps ledger_step[];
    resolved uuid[];
    -- By operation.
    made reservation_state[] := '{}';       -- of the reservation that it makes
    reasons text[] := '{}';
    facts jsonb[] := '{}';
    remainders bigint[] := '{}';            -- smallest rest of the budgets
    slices ledger_slices[] := '{}';
    alarming boolean := false;      -- an overage, a late settle, a threshold passed
    taken ledger_slices;
    o ledger_operation;
    x reservations;
    r ledger_route;
    shares bigint[];
    bucket_ids bigint[];
    grant_ids bigint[];
    zeros bigint[];
    extended boolean := false;
    operation entry_operation;
    reason text;
    refusal jsonb;
    is_abandoned boolean;
    ends boolean;
    asks boolean;
    counted boolean;                -- nothing is held: it is counted at once
    id bigint;
    account_id bigint;
    p integer;
    held_sign integer;
    suspense_sign integer;
    counts bigint;
    requests integer;
    amount bigint;
    tokens bigint;
    spent bigint;
    released bigint;
    need bigint;
    rest bigint;
    remaining bigint;
BEGIN
    FOREACH o IN ARRAY operations LOOP
        operation_ids := operation_ids || o.id;
    END LOOP;

    <<look>>
    LOOP
        looks := looks + 1;
        IF looks > looks_max THEN
            RAISE EXCEPTION 'a reservation lies in a bucket that is not there'
                USING ERRCODE = 'data_corrupted';
        END IF;
        at := moment;
        path := find_routes(operations, at);
        abandoned := find_abandoned(
            path.org_ids || sweep_org_ids, path.pool_ids || sweep_pool_ids, path.routes, at);
        ids := operation_ids;
        IF abandoned.ids <> '{}' THEN
            ids := ids || ARRAY(
                SELECT u FROM unnest(abandoned.ids) AS u WHERE u <> ALL (operation_ids));
        END IF;
        SELECT array_agg(b.id ORDER BY b.id), array_agg(b.unit ORDER BY b.id),
            array_agg(CASE WHEN x.closed_at IS NULL THEN coalesce(g.amount, x.limit_amount) END
                ORDER BY b.id),
            array_agg(b.posted ORDER BY b.id), array_agg(b.held ORDER BY b.id),
            array_agg(b.suspense ORDER BY b.id), array_agg(b.lapsed ORDER BY b.id),
            array_agg(CASE b.unit WHEN 'nano_usd' THEN
                x.soft_amounts[1 + width_bucket(b.posted + b.suspense, x.soft_amounts)] END
                ORDER BY b.id),
            array_agg(b.id) FILTER (WHERE g.expires_at <= ledger_now())
        INTO b_ids, b_units, b_limits, b_posted, b_held, b_suspense, b_lapsed, b_soft, ended_ids
        FROM (
            SELECT * FROM buckets WHERE id = ANY (ARRAY(
                SELECT unnest(u.bucket_ids || u.grant_ids || u.credit_ids)
                FROM unnest(path.routes) AS u
                UNION
                SELECT unnest(u.bucket_ids || u.slice_ids)
                FROM unnest(ids) AS i (id), LATERAL (
                    SELECT bucket_ids, slice_ids FROM reservations WHERE id = i.id OFFSET 0) AS u
            ))
            ORDER BY id FOR NO KEY UPDATE
        ) AS b
        LEFT JOIN budgets x ON x.id = b.budget_id
        LEFT JOIN grants g ON g.id = b.grant_id;
        moment := ledger_now();
        -- The one look at them that everything below is decided on: what commits after it is unknown
        -- here, and a new id that it took is a unique violation.
        SELECT array_agg(u ORDER BY i.n), count(DISTINCT i.id),
            (SELECT sum(v.version) FROM configuration_versions v
                WHERE v.account_id = ANY (path.org_ids || 0::bigint))
        INTO known, distinct_ids, version
        FROM unnest(ids) WITH ORDINALITY AS i (id, n) LEFT JOIN reservations u ON u.id = i.id;
        IF distinct_ids <> cardinality(ids) THEN
            RAISE EXCEPTION 'an id is in the batch twice'
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
        -- What was committed since its routes were found (a lower limit, a new budget, the end of a
        -- key) holds for it. What time brings (the end of a key or of a hold) may be a second old, but
        -- a hold belongs to the minute in which it is made, and to no grant that has ended.
        IF version IS DISTINCT FROM path.version THEN
            IF looks > changes_max THEN
                RAISE EXCEPTION 'the configuration changes all the while'
                    USING ERRCODE = 'serialization_failure';
            END IF;
            CONTINUE look;
        END IF;
        IF date_trunc('second', at) <> date_trunc('second', moment)
            OR ended_ids IS NOT NULL AND EXISTS (
                SELECT FROM unnest(path.routes) AS u WHERE u.grant_ids || u.credit_ids && ended_ids)
        THEN
            CONTINUE look;
        END IF;

        -- What gives room.
        steps := '{}';
        resolved := '{}';
        FOR n IN 1 .. cardinality(ids) LOOP
            x := known[n];
            CONTINUE WHEN x.id IS NULL OR x.state NOT IN ('held', 'expired');
            o := operations[n];
            is_abandoned := x.state = 'held' AND x.expires_at <= at;
            ends := coalesce(
                o.op IN ('settle', 'void') AND (o.key_id = x.key_id) IS NOT FALSE, false);
            IF o.op = 'extend' AND x.state = 'held' AND path.routes[path.route_of[n]] IS NULL THEN
                -- Its reserve was committed after the routes were found.
                CONTINUE look;
            END IF;
            FOR turn IN 1 .. 2 LOOP
                IF turn = 1 THEN
                    CONTINUE WHEN NOT is_abandoned;
                    operation := 'expire';
                    held_sign := -1;
                    suspense_sign := (x.pool = 'paid')::integer;
                    spent := 0;
                    tokens := 0;
                    requests := 0;
                ELSE
                    CONTINUE WHEN NOT ends;
                    held_sign := -(x.state = 'held' AND NOT is_abandoned)::integer;
                    suspense_sign := -(held_sign = 0 AND x.pool = 'paid')::integer;
                    requests := (o.op = 'settle')::integer;
                    spent := CASE o.op WHEN 'settle' THEN o.amount ELSE 0 END;
                    tokens := CASE o.op WHEN 'settle' THEN o.tokens ELSE 0 END;
                    operation := CASE
                        WHEN o.op = 'void' THEN 'void'
                        WHEN held_sign = 0 THEN 'late_settle'
                        ELSE 'settle'
                    END;
                END IF;
                FOREACH id IN ARRAY x.bucket_ids LOOP
                    p := width_bucket(id, b_ids);
                    IF b_ids[p] IS DISTINCT FROM id THEN
                        CONTINUE look;
                    END IF;
                    counts := CASE b_units[p]
                        WHEN 'nano_usd' THEN x.amount WHEN 'tokens' THEN x.tokens ELSE 1 END;
                    b_held[p] := b_held[p] + held_sign * counts;
                    CONTINUE WHEN b_units[p] = 'in_flight';
                    IF suspense_sign <> 0 THEN
                        b_suspense[p] := b_suspense[p] + suspense_sign * counts;
                    END IF;
                    b_posted[p] := b_posted[p] + CASE b_units[p]
                        WHEN 'nano_usd' THEN spent WHEN 'tokens' THEN tokens ELSE requests END;
                END LOOP;
                shares := slices_posted(x.slice_amounts, x.slice_sides, x.amount, spent);
                FOR k IN 1 .. coalesce(cardinality(x.slice_ids), 0) LOOP
                    p := width_bucket(x.slice_ids[k], b_ids);
                    IF b_ids[p] IS DISTINCT FROM x.slice_ids[k] THEN
                        CONTINUE look;
                    END IF;
                    b_held[p] := b_held[p] + held_sign * x.slice_amounts[k];
                    b_suspense[p] := b_suspense[p] + suspense_sign * x.slice_amounts[k];
                    b_posted[p] := b_posted[p] + shares[k];
                END LOOP;
                released := greatest(-(held_sign + suspense_sign) * x.amount - spent, 0);
                steps := steps || ROW(
                    CASE turn WHEN 1 THEN 0 ELSE n END, x.id, operation, x.key_id, x.bucket_ids,
                    held_sign * x.amount, suspense_sign * x.amount, spent, x.slice_ids,
                    scaled(x.slice_amounts, held_sign), scaled(x.slice_amounts, suspense_sign),
                    shares,
                    CASE WHEN turn = 1 AND ends THEN NULL WHEN turn = 1 THEN 'expired'
                        WHEN o.op = 'void' THEN 'voided' ELSE 'settled' END,
                    released, spent > x.amount, turn = 2 AND held_sign = 0)::ledger_step;
                resolved := resolved || x.id;
                alarming := alarming OR spent > x.amount OR operation = 'late_settle';
            END LOOP;
        END LOOP;
        EXIT look;
    END LOOP;
    moment_ms := (extract(epoch FROM moment) * 1000)::bigint;
    waited_ms := (extract(epoch FROM clock_timestamp() - began) * 1000)::bigint;

    FOR n IN 1 .. cardinality(operations) LOOP
        o := operations[n];
        x := known[n];
        r := path.routes[path.route_of[n]];
        -- What the reservation and its route alone decide.
        reason := CASE
            WHEN o.op = 'reserve' AND x.id IS NULL THEN CASE
                WHEN o.id_ms < moment_ms - horizon_ms THEN 'RESERVATION_ID_TOO_OLD'
                WHEN o.id_ms > moment_ms + ahead_ms THEN 'RESERVATION_ID_IN_FUTURE'
                WHEN o.left_ms <= waited_ms THEN 'DEADLINE_EXCEEDED'
                ELSE r.reason
            END
            WHEN o.op = 'reserve' THEN CASE
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
            WHEN o.key_id <> x.key_id THEN 'RESERVATION_NOT_YOURS'
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
            -- What may not begin may not grow. Without a budget there is nothing left to ask.
            WHEN o.op = 'extend' AND (o.amount > x.amount OR o.tokens > x.tokens)
                THEN nullif(r.reason, 'BUDGET_MISSING')
        END;
        refusal := NULL;
        remaining := NULL;
        taken := NULL;
        counted := false;

        -- What takes room: each bucket of the path must have it …
        asks := reason IS NULL AND CASE o.op
            WHEN 'reserve' THEN x.id IS NULL
            WHEN 'extend' THEN o.amount > x.amount OR o.tokens > x.tokens
            ELSE false END;
        IF asks THEN
            IF o.op = 'reserve' THEN
                counted := o.pool = 'cache';
                bucket_ids := r.bucket_ids;
                amount := o.amount;
                tokens := o.tokens;
                requests := 1;
            ELSE
                -- In the windows in which it was made.
                bucket_ids := x.bucket_ids;
                amount := greatest(o.amount - x.amount, 0);
                tokens := greatest(o.tokens - x.tokens, 0);
                requests := 0;
            END IF;
            FOREACH id IN ARRAY bucket_ids LOOP
                p := width_bucket(id, b_ids);
                need := CASE b_units[p]
                    WHEN 'nano_usd' THEN amount WHEN 'tokens' THEN tokens ELSE requests END;
                rest := b_limits[p] - b_posted[p] - b_held[p] - b_suspense[p];
                IF need > rest AND (need > 0 OR requests > 0) THEN
                    reason := CASE b_units[p]
                        WHEN 'nano_usd' THEN 'BUDGET_EXCEEDED' ELSE 'RATE_LIMITED' END;
                    b_facts[p] := coalesce(b_facts[p], refusal_of(id, resolved));
                    refusal := b_facts[p] || jsonb_build_object(
                        'limit', b_limits[p], 'posted', b_posted[p], 'held', b_held[p],
                        'suspense', b_suspense[p], 'requested', need,
                        'resets_at_ms', CASE
                            -- An extension counts in the window of its hold, which no later one
                            -- relieves.
                            WHEN requests > 0 OR b_units[p] <> 'tokens' THEN least(
                                (b_facts[p] ->> 'resets_at_ms')::bigint, b_frees_ms[p])
                            END);
                    EXIT;
                END IF;
                IF b_units[p] = 'nano_usd' THEN
                    remaining := least(remaining, rest - need);
                END IF;
            END LOOP;
            -- … and the prepaid ones must have credit.
            FOR side IN 0 .. 1 LOOP
                account_id := CASE side WHEN 0 THEN r.prepaid_id ELSE r.prepaid_pool_id END;
                CONTINUE WHEN reason IS NOT NULL OR amount = 0 OR account_id IS NULL;
                rest := 0;
                FOREACH id IN ARRAY coalesce(
                    CASE side WHEN 0 THEN r.grant_ids ELSE r.credit_ids END, '{}')
                LOOP
                    p := width_bucket(id, b_ids);
                    rest := rest + greatest(
                        b_limits[p] - b_posted[p] - b_held[p] - b_suspense[p] - b_lapsed[p], 0);
                END LOOP;
                IF rest < amount THEN
                    reason := 'CREDIT_EXHAUSTED';
                    refusal := credit_refusal_of(account_id, rest, amount);
                END IF;
            END LOOP;
            -- There may be room behind abandoned holds that are left for the next batch: then this is
            -- no verdict, and is not remembered.
            IF reason IS NOT NULL AND (
                r.org_id = ANY (abandoned.left_org_ids) OR r.pool_id = ANY (abandoned.left_pool_ids))
            THEN
                reason := 'ABANDONED_HOLDS';
                refusal := NULL;
            END IF;
        END IF;
        IF asks AND reason IS NULL THEN
            FOREACH id IN ARRAY bucket_ids LOOP
                p := width_bucket(id, b_ids);
                IF counted THEN
                    b_posted[p] := b_posted[p] + 1;
                    CONTINUE;
                END IF;
                b_held[p] := b_held[p] + CASE b_units[p]
                    WHEN 'nano_usd' THEN amount WHEN 'tokens' THEN tokens ELSE requests END;
                IF b_units[p] = 'in_flight' AND requests > 0 THEN
                    b_frees_ms[p] := least(b_frees_ms[p], moment_ms + o.ttl_ms);
                END IF;
            END LOOP;
            FOR side IN 0 .. 1 LOOP
                grant_ids := CASE side WHEN 0 THEN r.grant_ids ELSE r.credit_ids END;
                CONTINUE WHEN grant_ids IS NULL;
                rest := amount;
                FOREACH id IN ARRAY grant_ids LOOP
                    EXIT WHEN rest = 0;
                    p := width_bucket(id, b_ids);
                    need := least(
                        rest, b_limits[p] - b_posted[p] - b_held[p] - b_suspense[p] - b_lapsed[p]);
                    CONTINUE WHEN need <= 0;
                    b_held[p] := b_held[p] + need;
                    rest := rest - need;
                    taken.ids := taken.ids || id;
                    taken.amounts := taken.amounts || need;
                    taken.sides := taken.sides || side::smallint;
                END LOOP;
            END LOOP;
            zeros := scaled(taken.amounts, 0);
            steps := steps || ROW(
                n, o.id,
                CASE WHEN counted THEN 'count' ELSE o.op END, coalesce(x.key_id, o.key_id),
                bucket_ids, amount, 0, 0, taken.ids, taken.amounts, zeros, zeros,
                NULL, NULL, NULL, NULL)::ledger_step;
        END IF;

        made[n] := CASE
            WHEN x.id IS NOT NULL THEN NULL
            WHEN o.op = 'void' AND reason IS NULL THEN 'voided'
            WHEN o.op <> 'reserve' OR reason IN (
                'RESERVATION_ID_TOO_OLD', 'RESERVATION_ID_IN_FUTURE', 'DEADLINE_EXCEEDED',
                'KEY_UNKNOWN', 'ABANDONED_HOLDS') THEN NULL
            WHEN reason IS NOT NULL THEN 'refused'
            WHEN counted THEN 'settled'
            ELSE 'held'
        END;
        reasons[n] := reason;
        facts[n] := refusal;
        remainders[n] := CASE WHEN reason IS NULL THEN remaining END;
        slices[n] := taken;
        IF o.op = 'extend' AND reason IS NULL THEN
            extended := true;
        END IF;
    END LOOP;

    UPDATE buckets AS b SET posted = u.posted, held = u.held, suspense = u.suspense
    FROM unnest(b_ids, b_posted, b_held, b_suspense) AS u (id, posted, held, suspense)
    WHERE b.id = ANY (ARRAY[u.id])
        AND (b.posted, b.held, b.suspense) IS DISTINCT FROM (u.posted, u.held, u.suspense);

    -- A new id that another transaction took meanwhile is a unique violation: the batch starts again
    -- and then sees what that one did.
    INSERT INTO reservations (
        id, state, created_at, epoch, org_id, pool_id, key_id, request_id, attempt, pool, provider,
        model, asked, asked_tokens, ttl_ms, end_user, tags, amount, tokens, bucket_ids, slice_ids,
        slice_amounts, slice_sides, expires_at, remaining, refusal_reason, refusal, resolved_at)
    SELECT u.id, w.state, moment, epoch_now, w.org_id, w.pool_id,
        CASE u.op WHEN 'reserve' THEN u.key_id END, u.request_id, u.attempt, u.pool::pool_kind,
        u.provider, u.model, u.amount, u.tokens, u.ttl_ms, u.end_user, u.tags,
        CASE w.state WHEN 'held' THEN u.amount ELSE 0 END,
        CASE w.state WHEN 'held' THEN u.tokens ELSE 0 END,
        CASE WHEN w.state IN ('held', 'settled') THEN w.bucket_ids ELSE '{}' END,
        (w.slices).ids, (w.slices).amounts, (w.slices).sides,
        CASE w.state WHEN 'held' THEN moment + u.ttl_ms * interval '1 millisecond' END,
        remainders[u.n], reasons[u.n], facts[u.n],
        CASE w.state WHEN 'held' THEN NULL ELSE moment END
    FROM unnest(operations) AS u, LATERAL (SELECT
        made[u.n] AS state, slices[u.n] AS slices,
        (path.routes[path.route_of[u.n]]).org_id AS org_id,
        (path.routes[path.route_of[u.n]]).pool_id AS pool_id,
        (path.routes[path.route_of[u.n]]).bucket_ids AS bucket_ids
    ) AS w
    WHERE made[u.n] IS NOT NULL;

    UPDATE reservations AS x SET
        state = s.state,
        resolved_at = moment,
        posted = s.posted,
        released = s.released,
        overage = s.overage,
        late = s.late,
        prompt_tokens = u.prompt_tokens, cached_prompt_tokens = u.cached_prompt_tokens,
        completion_tokens = u.completion_tokens, reasoning_tokens = u.reasoning_tokens,
        estimated = coalesce(u.estimated, false), outcome = u.outcome, trace_id = u.trace_id
    FROM unnest(steps) AS s, LATERAL (SELECT (operations[s.n]).*) AS u
    WHERE x.id = ANY (ARRAY[s.id]) AND s.state IS NOT NULL;

    IF extended THEN
        UPDATE reservations AS x SET
            amount = greatest(x.amount, u.amount),
            tokens = greatest(x.tokens, u.tokens),
            expires_at = greatest(x.expires_at, moment + u.ttl_ms * interval '1 millisecond'),
            remaining = coalesce(remainders[u.n], x.remaining),
            slice_ids = x.slice_ids || (slices[u.n]).ids,
            slice_amounts = x.slice_amounts || (slices[u.n]).amounts,
            slice_sides = x.slice_sides || (slices[u.n]).sides
        FROM unnest(operations) AS u
        WHERE u.op = 'extend' AND reasons[u.n] IS NULL AND x.id = ANY (ARRAY[u.id]);
    END IF;

    INSERT INTO entries (
        epoch, at, operation, reservation_id, account_id, bucket_ids, available, held, suspense,
        posted, slice_ids, slice_held, slice_suspense, slice_posted)
    SELECT epoch_now, moment, s.operation, s.id, s.key_id, s.bucket_ids,
        -(s.held + s.suspense + s.posted), s.held, s.suspense, s.posted,
        s.slice_ids, s.slice_held, s.slice_suspense, s.slice_posted
    FROM unnest(steps) AS s;

    FOR place IN 1 .. coalesce(cardinality(b_ids), 0) LOOP
        EXIT WHEN alarming;
        alarming := coalesce(b_posted[place] + b_suspense[place] >= b_soft[place], false);
    END LOOP;
    IF alarming THEN
        INSERT INTO alerts (alert_key, kind, at, account_id, detail)
        SELECT f.kind || ':' || s.id, f.kind, moment, s.key_id, jsonb_build_object(
            'reservation_id', s.id, 'amount_nano_usd', (known[s.n]).amount,
            'posted_nano_usd', s.posted)
        FROM unnest(steps) AS s, LATERAL (VALUES
            ('overage', s.overage),
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
            unnest(x.soft_percents, x.soft_amounts) AS t (per_cent, soft)
        WHERE u.posted + u.suspense >= u.soft AND u.posted + u.suspense >= t.soft
        ON CONFLICT DO NOTHING;
    END IF;

    RETURN QUERY SELECT u.n, reasons[u.n],
        CASE WHEN reasons[u.n] IS NOT NULL THEN coalesce(facts[u.n], x.refusal) END,
        x.amount, x.expires_at, coalesce(remainders[u.n], x.remaining), x.posted, x.released,
        coalesce(x.overage, false), coalesce(x.late, false), moment
    FROM unnest(operations) AS u LEFT JOIN reservations x ON x.id = u.id
    ORDER BY u.n;
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
