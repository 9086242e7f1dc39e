-- Who may spend, and how much. One id space for organisations, teams and keys.

-- All time in the ledger comes from here: the database's own clock.
CREATE FUNCTION ledger_now() RETURNS timestamptz
LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp()';

CREATE TYPE account_kind AS ENUM ('org', 'team', 'key');

CREATE TABLE accounts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind account_kind NOT NULL,
    name text NOT NULL,
    org_id bigint REFERENCES accounts,
    team_id bigint REFERENCES accounts,
    suspended boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL,
    CHECK ((kind = 'org') = (org_id IS NULL)),
    CHECK ((kind = 'key') = (team_id IS NOT NULL))
);
CREATE UNIQUE INDEX accounts_name ON accounts (kind, coalesce(org_id, 0), name) WHERE kind <> 'key';
CREATE INDEX accounts_org ON accounts (org_id);
CREATE INDEX accounts_team ON accounts (team_id);

CREATE TABLE api_keys (
    account_id bigint PRIMARY KEY REFERENCES accounts,
    -- SHA-256 of the key's text. The text itself is nowhere.
    hash bytea NOT NULL UNIQUE CHECK (length(hash) = 32),
    prefix text NOT NULL,
    allowed_models text[] NOT NULL,
    local_only boolean NOT NULL,
    fail_open_local boolean NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz
);

CREATE TYPE window_kind AS ENUM ('total', 'month');

CREATE TABLE budgets (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id bigint NOT NULL REFERENCES accounts,
    kind window_kind NOT NULL,
    name text NOT NULL,
    time_zone text NOT NULL,
    -- NULL is spelled `unlimited` by the operator; 0 is a limit.
    limit_nano_usd bigint CHECK (limit_nano_usd >= 0),
    -- Set when a limit was ever lowered: the balances may lie above it without anybody's fault.
    limit_lowered_at timestamptz,
    UNIQUE (account_id, kind)
);

-- A window is keyed by the local date on which it began, so nothing is ever reset, and a changed
-- time zone does not open a second window for the same month.
CREATE FUNCTION window_key(kind window_kind, time_zone text, at timestamptz) RETURNS date
LANGUAGE sql STABLE AS $$
    SELECT CASE kind
        WHEN 'total' THEN '-infinity'::date
        ELSE date_trunc('month', at AT TIME ZONE time_zone)::date
    END
$$;

-- The first instant after the window; NULL: never. Where clocks go back over midnight, local
-- midnight comes twice and PostgreSQL takes the second: the first is the one that counts.
CREATE FUNCTION window_end(kind window_kind, time_zone text, key date) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN kind = 'total' THEN NULL
        WHEN (late - interval '1 hour') AT TIME ZONE time_zone = midnight
            THEN late - interval '1 hour'
        ELSE late
    END
    FROM (SELECT key + interval '1 month' AS midnight) AS m,
         LATERAL (SELECT midnight AT TIME ZONE time_zone AS late) AS l
$$;

-- Listeners hear which keys' principals changed, by hash.
CREATE FUNCTION notify_keys(account bigint) RETURNS void
LANGUAGE sql AS $$
    SELECT pg_notify('penstock_keys', encode(k.hash, 'hex'))
    FROM accounts a JOIN api_keys k ON k.account_id = a.id
    WHERE account IN (a.id, a.team_id, a.org_id)
$$;
