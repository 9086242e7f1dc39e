-- From a fact to who should hear of it.

-- NULL: nobody was told yet.
ALTER TABLE alerts ADD COLUMN routed_at timestamptz;
CREATE INDEX alerts_unrouted ON alerts (id) WHERE routed_at IS NULL;
CREATE INDEX alerts_account ON alerts (account_id, id);
CREATE INDEX alerts_kind ON alerts (kind, id);

-- One alert on its way to one webhook.
CREATE TABLE alert_deliveries (
    alert_id bigint NOT NULL REFERENCES alerts,
    -- SHA-256 of its shape and address: the address may hold a secret, and is kept nowhere.
    webhook text NOT NULL,
    host text NOT NULL,
    shape text NOT NULL,
    -- The same in every try, so that a receiver knows a repeat; no other ledger has it.
    message_id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- Counted when a try begins. Only who began the last one may say how it ended.
    tries integer NOT NULL DEFAULT 0,
    -- When it may be tried next; during a try: when that is taken for dead. NULL: no more.
    next_try_at timestamptz,
    delivered_at timestamptz,
    given_up_at timestamptz,
    last_status integer NOT NULL DEFAULT 0,
    last_error text NOT NULL DEFAULT '',
    PRIMARY KEY (alert_id, webhook)
);
CREATE INDEX alert_deliveries_due ON alert_deliveries (webhook, next_try_at)
    WHERE next_try_at IS NOT NULL;

-- When a check last ran, in whichever process: one is enough.
CREATE TABLE alert_checks (
    name text PRIMARY KEY,
    ran_at timestamptz NOT NULL
);

CREATE INDEX grants_expiring ON grants (expires_at) WHERE expires_at < 'infinity';

-- The first instant of the window; NULL: it has none.
CREATE FUNCTION window_start(kind window_kind, time_zone text, key timestamp) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN kind <> 'total' THEN window_end(kind, time_zone, key - ('1 ' || kind)::interval)
    END
$$;

-- What people call an account: 'key acme/search/ci'.
CREATE FUNCTION account_label(account bigint) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE a.kind WHEN 'org' THEN 'organisation' ELSE a.kind::text END
        || ' ' || concat_ws('/', o.name, t.name, a.name)
    FROM accounts a
    LEFT JOIN accounts o ON o.id = a.org_id
    LEFT JOIN accounts t ON t.id = a.team_id
    WHERE a.id = account
$$;
