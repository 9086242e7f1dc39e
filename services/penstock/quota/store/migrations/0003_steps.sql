-- The states of one reservation and how each operation moves it. Nothing here reads or writes a table.

-- One operation of a batch, as the service sends it.
CREATE TYPE ledger_operation AS (
    n integer,                  -- place in the batch
    op text,                    -- reserve, settle, void
    id uuid,
    id_ms bigint,               -- the time within the id
    left_ms bigint,             -- a reserve that is not applied by then is not applied at all
    key_id bigint,
    request_id text,
    attempt integer,
    pool pool_kind,
    provider text,
    model text,
    amount bigint,
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

-- What an operation does to its reservation and, alike, to every bucket of it.
CREATE TYPE ledger_step AS (
    reason text,                -- of a refusal; NULL: done, now or before
    operation entry_operation,  -- NULL: nothing moves
    held bigint,
    suspense bigint,
    posted bigint,
    after reservations
);

-- An abandoned hold: a local one is released, a paid one is suspected to have been billed.
CREATE FUNCTION expire_step(r reservations, at timestamptz) RETURNS ledger_step
LANGUAGE plpgsql STABLE AS $$
DECLARE
    s ledger_step;
BEGIN
    s.operation := 'expire';
    s.held := -r.amount;
    s.suspense := CASE r.pool WHEN 'paid' THEN r.amount ELSE 0 END;
    s.posted := 0;
    r.state := 'expired';
    r.resolved_at := at;
    r.released := r.amount - s.suspense;
    s.after := r;
    RETURN s;
END
$$;

CREATE FUNCTION settle_step(r reservations, o ledger_operation, at timestamptz) RETURNS ledger_step
LANGUAGE plpgsql STABLE AS $$
DECLARE
    s ledger_step;
    promised bigint := r.amount;  -- what still counts for this reservation
BEGIN
    s.after := r;
    IF r.id IS NULL THEN
        s.reason := 'RESERVATION_UNKNOWN';
    ELSIF r.state = 'refused' THEN
        s.reason := 'RESERVATION_REFUSED';
    ELSIF r.state = 'voided' THEN
        s.reason := 'RESERVATION_VOIDED';
    ELSIF r.state = 'settled' THEN
        IF (r.posted, r.prompt_tokens, r.cached_prompt_tokens, r.completion_tokens,
            r.reasoning_tokens, r.estimated, r.outcome)
           IS DISTINCT FROM
           (o.amount, o.prompt_tokens, o.cached_prompt_tokens, o.completion_tokens,
            o.reasoning_tokens, o.estimated, o.outcome) THEN
            s.reason := 'RESERVATION_SETTLED';
        END IF;
    ELSE
        IF r.state = 'held' THEN
            s.operation := 'settle';
            s.held := -r.amount;
            s.suspense := 0;
        ELSE
            s.operation := 'late_settle';
            promised := CASE r.pool WHEN 'paid' THEN r.amount ELSE 0 END;
            s.held := 0;
            s.suspense := -promised;
        END IF;
        s.posted := o.amount;
        r.late := r.state = 'expired';
        r.overage := o.amount > r.amount;
        r.released := greatest(promised - o.amount, 0);
        r.posted := o.amount;
        r.state := 'settled';
        r.resolved_at := at;
        r.prompt_tokens := o.prompt_tokens;
        r.cached_prompt_tokens := o.cached_prompt_tokens;
        r.completion_tokens := o.completion_tokens;
        r.reasoning_tokens := o.reasoning_tokens;
        r.estimated := o.estimated;
        r.outcome := o.outcome;
        r.trace_id := o.trace_id;
        s.after := r;
    END IF;
    RETURN s;
END
$$;

-- A void of an expired hold is a late settle of nothing: it gives back what is in suspense.
-- A void of an id that was never seen is remembered, so that its reserve, still on the way, is refused.
CREATE FUNCTION void_step(r reservations, o ledger_operation, at timestamptz) RETURNS ledger_step
LANGUAGE plpgsql STABLE AS $$
DECLARE
    s ledger_step;
BEGIN
    IF r.id IS NULL THEN
        r.id := o.id;
        r.state := 'voided';
        r.created_at := at;
        r.amount := 0;
        r.bucket_ids := '{}';
        r.resolved_at := at;
        r.posted := 0;
        r.released := 0;
        r.overage := false;
        r.late := false;
        r.estimated := false;
        r.outcome := o.outcome;
    ELSIF r.state = 'refused' THEN
        NULL;  -- nothing was ever held: done already
    ELSIF r.state = 'settled' THEN
        s.reason := 'RESERVATION_SETTLED';
    ELSIF r.state <> 'voided' THEN
        s.operation := 'void';
        s.posted := 0;
        IF r.state = 'held' THEN
            s.held := -r.amount;
            s.suspense := 0;
        ELSE
            s.held := 0;
            s.suspense := CASE r.pool WHEN 'paid' THEN -r.amount ELSE 0 END;
            r.late := true;
        END IF;
        r.released := -(s.held + s.suspense);
        r.state := 'voided';
        r.resolved_at := at;
        r.outcome := o.outcome;
    END IF;
    s.after := r;
    RETURN s;
END
$$;

-- A reserve under an id that is known: NULL if it is the same one, else the reason of the refusal.
CREATE FUNCTION repeat_reason(r reservations, o ledger_operation) RETURNS text
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF r.state = 'voided' AND r.key_id IS NULL THEN
        RETURN 'RESERVATION_VOIDED';
    ELSIF (r.key_id, r.request_id, r.attempt, r.pool, r.provider, r.model, r.amount, r.ttl_ms,
           r.end_user, r.tags)
          IS DISTINCT FROM
          (o.key_id, o.request_id, o.attempt, o.pool, o.provider, o.model, o.amount, o.ttl_ms,
           o.end_user, o.tags) THEN
        RETURN 'RESERVATION_ID_REUSED';
    END IF;
    RETURN r.refusal_reason;
END
$$;
