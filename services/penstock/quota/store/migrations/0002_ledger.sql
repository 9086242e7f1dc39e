-- What was promised and what was spent. Amounts of money are nano-USD.

-- A budget in one window, or a grant.
CREATE TABLE buckets (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    budget_id bigint REFERENCES budgets,
    grant_id bigint UNIQUE REFERENCES grants,
    unit budget_unit NOT NULL,
    window_key timestamp NOT NULL DEFAULT '-infinity',
    posted bigint NOT NULL DEFAULT 0 CHECK (posted >= 0),
    held bigint NOT NULL DEFAULT 0 CHECK (held >= 0),
    suspense bigint NOT NULL DEFAULT 0 CHECK (suspense >= 0),
    -- Of a grant: what went back unused at its end.
    lapsed bigint NOT NULL DEFAULT 0 CHECK (lapsed >= 0),
    UNIQUE (budget_id, window_key),
    CHECK ((budget_id IS NULL) <> (grant_id IS NULL)),
    CHECK (grant_id IS NULL OR unit = 'nano_usd')
) WITH (fillfactor = 40); -- the hottest rows there are: room for updates within the page

CREATE TYPE pool_kind AS ENUM ('local', 'paid', 'cache');
CREATE TYPE reservation_state AS ENUM ('held', 'settled', 'voided', 'expired', 'refused');

CREATE TABLE reservations (
    id uuid PRIMARY KEY,
    state reservation_state NOT NULL,
    created_at timestamptz NOT NULL,
    -- Of its first entry: clocks go back, epochs do not.
    epoch integer NOT NULL,
    org_id bigint,
    -- The provider's account, if it has one.
    pool_id bigint,
    -- What was asked. All of it is the fingerprint of a repeated reserve. NULL in a row that only
    -- remembers a void which came before its reserve.
    key_id bigint,
    request_id text,
    attempt integer,
    pool pool_kind,
    provider text,
    model text,
    asked bigint,
    asked_tokens bigint,
    ttl_ms bigint,
    end_user text,
    tags jsonb,
    -- What was answered. `amount` and `tokens` grow by Extend.
    amount bigint NOT NULL DEFAULT 0 CHECK (amount >= 0),
    tokens bigint NOT NULL DEFAULT 0 CHECK (tokens >= 0),
    bucket_ids bigint[] NOT NULL DEFAULT '{}',
    -- The slices of grants that it holds, in the order in which they are used up; first those of its
    -- tenant (side 0), then those of the provider's pool (side 1). NULL: none.
    slice_ids bigint[],
    slice_amounts bigint[],
    slice_sides smallint[],
    expires_at timestamptz,
    remaining bigint,
    refusal_reason text,
    refusal jsonb,
    -- How it ended.
    resolved_at timestamptz,
    posted bigint NOT NULL DEFAULT 0 CHECK (posted >= 0),
    -- What adjusting entries added to it since.
    adjusted bigint NOT NULL DEFAULT 0 CHECK (posted + adjusted >= 0),
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
CREATE INDEX reservations_pool_held ON reservations (pool_id, expires_at)
    WHERE state = 'held' AND pool_id IS NOT NULL;
CREATE INDEX reservations_suspense ON reservations (resolved_at)
    WHERE state = 'expired' AND pool = 'paid';
CREATE INDEX reservations_request ON reservations (request_id);

-- The time between two seals. One is open; a closed one gets no entry any more.
CREATE TABLE epochs (
    id integer PRIMARY KEY,
    began_at timestamptz NOT NULL,
    closed_at timestamptz,
    -- Its balances were recomputed from its entries and found right.
    sealed_at timestamptz,
    detached_at timestamptz,
    -- Of a sealed one: how many entries there were until its end, and what they posted in all.
    entries bigint,
    posted numeric,
    -- SHA-256 over its entries, on the digest of the epoch before it.
    digest bytea CHECK (length(digest) = 32),
    -- Its last entry, or one before it: the ids of the next epoch are higher.
    last_entry_id bigint,
    -- How many adjustments there were until its end, and SHA-256 over them.
    adjustments bigint,
    adjustments_digest bytea CHECK (length(adjustments_digest) = 32)
);
CREATE UNIQUE INDEX epochs_open ON epochs ((true)) WHERE closed_at IS NULL;
INSERT INTO epochs VALUES (1, ledger_now());

-- Held by each transaction that writes entries, shared; by who closes an epoch, alone, for a moment.
CREATE FUNCTION current_epoch() RETURNS integer
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtext('penstock.epoch'));
    RETURN (SELECT id FROM epochs WHERE closed_at IS NULL);
END
$$;

CREATE TYPE entry_operation AS ENUM (
    'reserve', 'extend', 'settle', 'void', 'expire', 'late_settle', 'count', 'adjust', 'grant',
    'lapse', 'configure'
);

-- Each movement is one entry with four legs that sum to zero, in every money bucket of `bucket_ids`
-- alike: what leaves `available` is debited to held, suspense or posted, and back. Grants move by the
-- slice: one element of the slice arrays each (NULL: none).
CREATE TABLE entries (
    id bigint GENERATED ALWAYS AS IDENTITY,
    epoch integer NOT NULL,
    at timestamptz NOT NULL,
    operation entry_operation NOT NULL,
    reservation_id uuid,
    -- The key that spends, or the account that is changed.
    account_id bigint NOT NULL,
    bucket_ids bigint[] NOT NULL,
    available bigint NOT NULL DEFAULT 0,
    held bigint NOT NULL DEFAULT 0,
    suspense bigint NOT NULL DEFAULT 0,
    posted bigint NOT NULL DEFAULT 0,
    slice_ids bigint[],
    slice_held bigint[],
    slice_suspense bigint[],
    slice_posted bigint[],
    slice_lapsed bigint[],
    -- Of what an operator does: who, why, and what was and is.
    actor text,
    reason text,
    detail jsonb,
    CHECK (available + held + suspense + posted = 0)
) PARTITION BY RANGE (epoch);
CREATE INDEX entries_id ON entries (id);
CREATE INDEX entries_reservation ON entries (reservation_id);
CREATE INDEX entries_account ON entries (account_id, id);

CREATE FUNCTION refuse_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'entries are append-only' USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE ON entries
FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Made apart and then attached: that waits for no reader or writer of the entries, and stalls none.
-- Does nothing where it is there.
CREATE FUNCTION create_partition(epoch integer) RETURNS void
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF to_regclass(format('entries_%s', epoch)) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format(
        'CREATE TABLE entries_%s (LIKE entries INCLUDING CONSTRAINTS INCLUDING DEFAULTS
            INCLUDING INDEXES)', epoch);
    EXECUTE format(
        'ALTER TABLE entries ATTACH PARTITION entries_%s FOR VALUES FROM (%s) TO (%s)',
        epoch, epoch, epoch + 1);
    EXECUTE format(
        'CREATE TRIGGER entries_never_emptied BEFORE TRUNCATE ON entries_%s
         FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', epoch);
END
$$;
SELECT create_partition(1);

-- An operator's adjustments by the keys of their choosing: each is made once.
CREATE TABLE adjustments (
    adjustment_key text PRIMARY KEY,
    -- One of the two.
    account_id bigint REFERENCES accounts,
    reservation_id uuid,
    amount bigint NOT NULL,
    entry_id bigint,
    CHECK ((account_id IS NULL) <> (reservation_id IS NULL))
);

-- The balances at the end of a sealed epoch: what is behind it need not be read again.
CREATE TABLE checkpoint_buckets (
    epoch integer NOT NULL REFERENCES epochs,
    -- Of `buckets`. No foreign key: a hundred thousand checks a seal, where the audit makes one.
    bucket_id bigint NOT NULL,
    posted bigint NOT NULL,
    held bigint NOT NULL,
    suspense bigint NOT NULL,
    lapsed bigint NOT NULL,
    PRIMARY KEY (epoch, bucket_id)
);
-- The reservations that held or were suspected then.
CREATE TABLE checkpoint_reservations (
    epoch integer NOT NULL REFERENCES epochs,
    reservation_id uuid NOT NULL,
    held bigint NOT NULL,
    suspense bigint NOT NULL,
    -- Of its slices together.
    slice_held bigint NOT NULL,
    slice_suspense bigint NOT NULL,
    PRIMARY KEY (epoch, reservation_id)
);

-- What the last entry about it says that it is: a budget, a grant, an account, a key, a pool.
CREATE TABLE checkpoint_settings (
    epoch integer NOT NULL REFERENCES epochs,
    subject text NOT NULL,
    subject_id bigint NOT NULL,
    entry_id bigint NOT NULL,
    account_id bigint NOT NULL,
    settings jsonb NOT NULL,
    PRIMARY KEY (epoch, subject, subject_id)
);

-- What pruned reservations count in the windows of rate limits that are still there.
CREATE TABLE pruned_uses (
    -- Of `buckets`.
    bucket_id bigint PRIMARY KEY,
    requests bigint NOT NULL,
    tokens bigint NOT NULL
);

-- Of each provider: paid attempts that counted until then were pruned. Its days until then cannot be
-- reconciled any more.
CREATE TABLE pruned_attempts (
    provider text PRIMARY KEY,
    until timestamptz NOT NULL
);

-- What somebody should know of. Each fact once, by its key.
CREATE TABLE alerts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    alert_key text NOT NULL UNIQUE,
    kind text NOT NULL,
    at timestamptz NOT NULL,
    account_id bigint,
    detail jsonb NOT NULL
);
