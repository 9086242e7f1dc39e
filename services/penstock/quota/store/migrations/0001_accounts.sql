-- Who may spend, and how much. One id space for organisations, teams, keys and providers' pools.

-- All time in the ledger comes from here: the database's own clock.
CREATE FUNCTION ledger_now() RETURNS timestamptz
LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp()';

-- In the order of a path. A pool is one organisation's account at a provider.
CREATE TYPE account_kind AS ENUM ('org', 'team', 'key', 'pool');

CREATE TABLE accounts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind account_kind NOT NULL,
    name text NOT NULL,
    org_id bigint REFERENCES accounts,
    team_id bigint REFERENCES accounts,
    suspended boolean NOT NULL DEFAULT false,
    -- Nothing is spent beyond its usable grants.
    prepaid boolean NOT NULL DEFAULT false,
    -- It may not use grants for non-commercial use.
    commercial boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL,
    CHECK ((kind IN ('org', 'pool')) = (org_id IS NULL)),
    CHECK ((kind = 'key') = (team_id IS NOT NULL))
);
CREATE UNIQUE INDEX accounts_name ON accounts (kind, coalesce(org_id, 0), name) WHERE kind <> 'key';
CREATE INDEX accounts_org ON accounts (org_id);
CREATE INDEX accounts_team ON accounts (team_id);

CREATE TABLE api_keys (
    account_id bigint PRIMARY KEY REFERENCES accounts,
    allowed_models text[] NOT NULL,
    local_only boolean NOT NULL,
    fail_open_local boolean NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz
);

-- A key has one text, or several while a rotation overlaps.
CREATE TABLE key_secrets (
    -- SHA-256 of the text. The text itself is nowhere.
    hash bytea PRIMARY KEY CHECK (length(hash) = 32),
    account_id bigint NOT NULL REFERENCES api_keys,
    prefix text NOT NULL,
    created_at timestamptz NOT NULL,
    valid_until timestamptz
);
CREATE INDEX key_secrets_account ON key_secrets (account_id);

-- The providers of the catalogue that are one account at one provider.
CREATE TABLE pool_providers (
    provider text PRIMARY KEY,
    pool_id bigint NOT NULL REFERENCES accounts
);
CREATE INDEX pool_providers_pool ON pool_providers (pool_id);

-- How often the configuration of an organisation, with all that lies in it, was changed; 0: of any pool.
-- A batch that waited for locks sees whether what it knows still holds.
CREATE TABLE configuration_versions (
    account_id bigint PRIMARY KEY,
    version bigint NOT NULL
);

-- A rate limit is a budget in another unit than money.
CREATE TYPE budget_unit AS ENUM ('nano_usd', 'requests', 'tokens', 'in_flight');
CREATE TYPE window_kind AS ENUM ('minute', 'hour', 'day', 'week', 'month', 'total');

-- What must be spent for each warning, ascending.
CREATE FUNCTION soft_amounts(limit_amount bigint, percents smallint[]) RETURNS bigint[]
LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT array_agg(ceil(limit_amount::numeric * p / 100)::bigint ORDER BY p)
    FROM unnest(percents) AS p
$$;

CREATE TABLE budgets (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id bigint NOT NULL REFERENCES accounts,
    name text NOT NULL,
    unit budget_unit NOT NULL,
    kind window_kind NOT NULL,
    time_zone text NOT NULL,
    -- NULL is spelled `unlimited` by the operator; 0 is a limit.
    limit_amount bigint CHECK (limit_amount >= 0),
    -- What it applies to, as LIKE patterns; empty: everything.
    providers text[] NOT NULL DEFAULT '{}',
    models text[] NOT NULL DEFAULT '{}',
    tags jsonb NOT NULL DEFAULT '{}',
    -- Per cent of the limit at which it warns, ascending.
    soft_percents smallint[] NOT NULL DEFAULT '{}',
    soft_amounts bigint[] GENERATED ALWAYS AS (soft_amounts(limit_amount, soft_percents)) STORED,
    created_at timestamptz NOT NULL,
    closed_at timestamptz,
    UNIQUE (account_id, name),
    CHECK (unit <> 'in_flight' OR kind = 'total')
);

-- Prepaid credit: usable iff starts_at <= now < expires_at, drained soonest-expiring first.
CREATE TABLE grants (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    grant_key text NOT NULL UNIQUE,
    account_id bigint NOT NULL REFERENCES accounts,
    name text NOT NULL,
    reason text NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    starts_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL DEFAULT 'infinity',
    providers text[] NOT NULL DEFAULT '{}',
    models text[] NOT NULL DEFAULT '{}',
    tags jsonb NOT NULL DEFAULT '{}',
    commercial_use boolean NOT NULL,
    created_at timestamptz NOT NULL,
    -- What was asked: the fingerprint of a repeated creation, whatever became of the grant.
    asked jsonb NOT NULL DEFAULT '{}',
    CHECK (starts_at < expires_at)
);
CREATE INDEX grants_account ON grants (account_id, expires_at);

CREATE FUNCTION applies(
    providers text[], models text[], tags jsonb, provider text, model text, request_tags jsonb
) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT (providers = '{}' OR provider LIKE ANY (providers))
        -- By its name, or as it is pinned: gpt-4o-mini, openai/gpt-4o-mini.
        AND (models = '{}' OR model LIKE ANY (models)
            OR provider || '/' || model LIKE ANY (models))
        AND (tags = '{}' OR request_tags @> tags)
$$;

-- A window is keyed by when it began, so nothing is ever reset: minutes and hours by UTC, the others by
-- the local date, so that a changed time zone does not open a second window for the same month.
CREATE FUNCTION window_key(kind window_kind, time_zone text, at timestamptz) RETURNS timestamp
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN kind = 'total' THEN '-infinity'::timestamp
        WHEN kind IN ('minute', 'hour') THEN date_trunc(kind::text, at AT TIME ZONE 'UTC')
        ELSE date_trunc(kind::text, at AT TIME ZONE time_zone)
    END
$$;

-- The first instant after the window; NULL: never. Where clocks go back over midnight, local
-- midnight comes twice and PostgreSQL takes the second: the first is the one that counts.
CREATE FUNCTION window_end(kind window_kind, time_zone text, key timestamp) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN kind = 'total' THEN NULL
        WHEN kind IN ('minute', 'hour') THEN (key + ('1 ' || kind)::interval) AT TIME ZONE 'UTC'
        WHEN (late - interval '1 hour') AT TIME ZONE time_zone = midnight
            THEN late - interval '1 hour'
        ELSE late
    END
    FROM (SELECT key + ('1 ' || kind)::interval AS midnight WHERE kind <> 'total') AS m,
        LATERAL (SELECT midnight AT TIME ZONE time_zone AS late) AS l
$$;

-- Listeners hear which keys' principals changed, by hash.
CREATE FUNCTION notify_keys(account bigint) RETURNS void
LANGUAGE sql AS $$
    SELECT pg_notify('penstock_keys', encode(s.hash, 'hex'))
    FROM accounts a JOIN key_secrets s ON s.account_id = a.id
    WHERE account IN (a.id, a.team_id, a.org_id)
$$;
