-- What a provider says that it billed, and what was corrected by it.

-- Each import, and how it ended: not finished, it is made again.
CREATE TABLE reconciliations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    provider text NOT NULL,
    since date NOT NULL,
    until date NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    -- SHA-256 of what was reported, by group: the same export has the same.
    digest bytea NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    CHECK (since < until)
);

-- What was last reported of a day, and what the ledger says of it since.
CREATE TABLE reconciled_days (
    provider text NOT NULL,
    day date NOT NULL,
    -- Without its date.
    model text NOT NULL,
    -- 0: whoever made them.
    account_id bigint NOT NULL,
    reconciliation_id bigint NOT NULL REFERENCES reconciliations,
    requests bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    cached_prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    reported bigint NOT NULL,
    posted bigint NOT NULL,
    PRIMARY KEY (provider, day, model, account_id)
);

-- The attempts whose cost is known by reconciliation alone: a later export may correct it, up to the
-- bound that stood there before the first.
CREATE TABLE reconciled_attempts (
    reservation_id uuid PRIMARY KEY,
    bound bigint NOT NULL CHECK (bound >= 0),
    -- The last one that corrected it: who, and why.
    reconciliation_id bigint NOT NULL REFERENCES reconciliations
);

-- Attempts lie in the order in which they were made, so a day of them is a stretch of pages; and this
-- costs the hot path next to nothing.
CREATE INDEX reservations_days ON reservations
USING brin (created_at, resolved_at) WITH (pages_per_range = 32);

-- gpt-4o-mini-2024-07-18 is billed where gpt-4o-mini was asked for.
CREATE FUNCTION model_base(model text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT regexp_replace(model, '-\d{4}-\d{2}-\d{2}$', '')
$$;

-- The paid attempts that count on one UTC day: those that were settled in time, by when; those that were
-- abandoned (now in suspense, or settled later) by when they were made, for when somebody resolved them
-- says nothing of when the provider billed. `account_ids`: each attempt counts to the innermost of them
-- that it was made by, or not at all; none: all count, to 0.
CREATE FUNCTION attempts_of_day(of_provider text, day timestamptz, account_ids bigint[])
RETURNS TABLE (
    id uuid, model text, account_id bigint, is_exact boolean, is_suspense boolean,
    is_estimated boolean, amount bigint, bound bigint
)
LANGUAGE sql STABLE AS $$
    SELECT r.id, model_base(r.model), w.account_id,
        r.state = 'settled' AND NOT r.estimated AND NOT w.is_resolved, r.state = 'expired',
        r.estimated, w.amount, coalesce(d.bound, w.amount)
    FROM reservations r
    LEFT JOIN reconciled_attempts d ON d.reservation_id = r.id
    JOIN accounts a ON a.id = r.key_id
    CROSS JOIN LATERAL (
        SELECT CASE
                WHEN cardinality(account_ids) = 0 THEN 0
                WHEN a.id = ANY (account_ids) THEN a.id
                WHEN a.team_id = ANY (account_ids) THEN a.team_id
                WHEN a.org_id = ANY (account_ids) THEN a.org_id
            END AS account_id,
            CASE r.state WHEN 'expired' THEN r.amount ELSE r.posted + r.adjusted END AS amount,
            -- One that its router settled late after all is exact.
            d.bound IS NOT NULL AND (NOT r.late OR r.outcome = 'RECONCILED') AS is_resolved
    ) AS w
    WHERE r.provider = of_provider AND r.pool = 'paid' AND w.account_id IS NOT NULL
        AND ((r.state = 'settled' AND NOT r.late
                AND r.resolved_at >= day AND r.resolved_at < day + interval '1 day')
            OR ((r.state = 'expired' OR (r.state = 'settled' AND r.late))
                AND r.created_at >= day AND r.created_at < day + interval '1 day'))
$$;
