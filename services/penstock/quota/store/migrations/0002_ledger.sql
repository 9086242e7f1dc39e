-- What was promised and what was spent. Amounts are nano-USD.

CREATE TABLE buckets (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    budget_id bigint NOT NULL REFERENCES budgets,
    window_key date NOT NULL,
    posted bigint NOT NULL DEFAULT 0 CHECK (posted >= 0),
    held bigint NOT NULL DEFAULT 0 CHECK (held >= 0),
    suspense bigint NOT NULL DEFAULT 0 CHECK (suspense >= 0),
    UNIQUE (budget_id, window_key)
) WITH (fillfactor = 40); -- the hottest rows there are: room for updates within the page

CREATE TYPE pool_kind AS ENUM ('local', 'paid');
CREATE TYPE reservation_state AS ENUM ('held', 'settled', 'voided', 'expired', 'refused');

CREATE TABLE reservations (
    id uuid PRIMARY KEY,
    state reservation_state NOT NULL,
    created_at timestamptz NOT NULL,
    -- What was asked. All of it is the fingerprint of a repeated reserve. NULL in a row that only
    -- remembers a void which came before its reserve.
    org_id bigint,
    key_id bigint,
    request_id text,
    attempt integer,
    pool pool_kind,
    provider text,
    model text,
    amount bigint NOT NULL CHECK (amount >= 0),
    ttl_ms bigint,
    end_user text,
    tags jsonb,
    -- What was answered.
    bucket_ids bigint[] NOT NULL,
    expires_at timestamptz,
    remaining bigint,
    refusal_reason text,
    refusal jsonb,
    -- How it ended.
    resolved_at timestamptz,
    posted bigint NOT NULL DEFAULT 0 CHECK (posted >= 0),
    released bigint NOT NULL DEFAULT 0 CHECK (released >= 0),
    overage boolean NOT NULL DEFAULT false,
    late boolean NOT NULL DEFAULT false,
    prompt_tokens bigint,
    cached_prompt_tokens bigint,
    completion_tokens bigint,
    reasoning_tokens bigint,
    estimated boolean NOT NULL DEFAULT false,
    outcome text,
    trace_id text
) WITH (fillfactor = 80);
CREATE INDEX reservations_held ON reservations (org_id, expires_at) WHERE state = 'held';
CREATE INDEX reservations_request ON reservations (request_id);

CREATE TYPE entry_operation AS ENUM ('reserve', 'settle', 'void', 'expire', 'late_settle');

-- Each movement is one entry with four legs that sum to zero, in every bucket of `bucket_ids` alike:
-- what leaves `available` is debited to held, suspense or posted, and back.
CREATE TABLE entries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL,
    operation entry_operation NOT NULL,
    reservation_id uuid NOT NULL,
    key_id bigint NOT NULL,
    bucket_ids bigint[] NOT NULL CHECK (cardinality(bucket_ids) > 0),
    available bigint NOT NULL,
    held bigint NOT NULL,
    suspense bigint NOT NULL,
    posted bigint NOT NULL CHECK (posted >= 0),
    CHECK (available + held + suspense + posted = 0)
);
CREATE INDEX entries_reservation ON entries (reservation_id);
CREATE INDEX entries_key ON entries (key_id, id);

CREATE FUNCTION refuse_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'entries are append-only' USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON entries
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
