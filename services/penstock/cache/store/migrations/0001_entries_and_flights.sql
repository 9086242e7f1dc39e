-- Answers already paid for. The tenant is part of the key: no answer crosses tenants.
CREATE TABLE entries (
    org_id text NOT NULL,
    fingerprint bytea NOT NULL CHECK (octet_length(fingerprint) = 32),
    answer bytea NOT NULL,
    size_bytes bigint NOT NULL,
    stored_at timestamptz NOT NULL,
    used_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, fingerprint)
);
CREATE INDEX entries_by_use ON entries (used_at);
CREATE INDEX entries_by_expiry ON entries (expires_at);

-- Who generates an answer right now. Nothing here outlives the generation: a crash may lose it.
CREATE UNLOGGED TABLE flights (
    org_id text NOT NULL,
    fingerprint bytea NOT NULL,
    token uuid NOT NULL,
    -- Somebody waits: the answer must be handed over, and the end announced.
    shared boolean NOT NULL,
    lease_expires_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, fingerprint)
);

-- Answers on their way from a flight's leader to those who wait in it.
CREATE UNLOGGED TABLE handoffs (
    token uuid PRIMARY KEY,
    org_id text NOT NULL,
    fingerprint bytea NOT NULL,
    answer bytea NOT NULL,
    stored_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX handoffs_by_expiry ON handoffs (expires_at);

-- One round trip for many lookups. Each finds, in this order: the answer of the flight it awaited,
-- an entry, or a flight to lead or to wait in. Keys come sorted, so that two batches cannot deadlock.
-- verdict: 'miss', 'hit', 'shared', 'lead', 'wait'. `token` is the flight's, with 'lead' and 'wait'.
CREATE FUNCTION look_up(
    orgs text[], fingerprints bytea[], max_ages_seconds bigint[], reads boolean[],
    joins boolean[], tokens uuid[], awaited uuid[], leases_ms bigint[]
) RETURNS TABLE (verdict text, answer bytea, stored_at timestamptz, token uuid)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    FOR i IN 1 .. cardinality(orgs) LOOP
        verdict := 'miss';
        answer := NULL;
        stored_at := NULL;
        token := NULL;
        IF awaited[i] IS NOT NULL THEN
            SELECT 'shared', h.answer, h.stored_at INTO verdict, answer, stored_at
            FROM handoffs h
            WHERE h.token = awaited[i] AND h.org_id = orgs[i] AND h.fingerprint = fingerprints[i]
                AND h.expires_at > clock_timestamp();
            IF FOUND THEN
                RETURN NEXT;
                CONTINUE;
            END IF;
            verdict := 'miss';
        END IF;
        IF reads[i] THEN
            SELECT 'hit', e.answer, e.stored_at INTO verdict, answer, stored_at
            FROM entries e
            WHERE e.org_id = orgs[i] AND e.fingerprint = fingerprints[i]
                AND e.expires_at > clock_timestamp()
                AND (max_ages_seconds[i] IS NULL OR e.stored_at
                    >= clock_timestamp() - make_interval(secs => max_ages_seconds[i]));
            IF FOUND THEN
                RETURN NEXT;
                CONTINUE;
            END IF;
            verdict := 'miss';
        END IF;
        WHILE joins[i] AND verdict = 'miss' LOOP
            -- Statements of their own: each sees what the one before waited for.
            INSERT INTO flights AS f (org_id, fingerprint, token, shared, lease_expires_at)
            VALUES (
                orgs[i], fingerprints[i], tokens[i], false,
                clock_timestamp() + make_interval(secs => leases_ms[i] / 1000.0)
            )
            ON CONFLICT (org_id, fingerprint) DO UPDATE SET
                token = excluded.token, shared = false, lease_expires_at = excluded.lease_expires_at
            WHERE f.lease_expires_at <= clock_timestamp();
            IF FOUND THEN
                verdict := 'lead';
                token := tokens[i];
            ELSE
                UPDATE flights f SET shared = true
                WHERE f.org_id = orgs[i] AND f.fingerprint = fingerprints[i]
                RETURNING 'wait', f.token INTO verdict, token;
                IF NOT FOUND THEN
                    verdict := 'miss';
                END IF;
            END IF;
        END LOOP;
        IF verdict = 'lead' AND reads[i] THEN
            -- The last leader may have stored its answer between the two looks.
            SELECT 'hit', e.answer, e.stored_at INTO verdict, answer, stored_at
            FROM entries e
            WHERE e.org_id = orgs[i] AND e.fingerprint = fingerprints[i]
                AND e.expires_at > clock_timestamp()
                AND (max_ages_seconds[i] IS NULL OR e.stored_at
                    >= clock_timestamp() - make_interval(secs => max_ages_seconds[i]));
            IF FOUND THEN
                DELETE FROM flights f
                WHERE f.org_id = orgs[i] AND f.fingerprint = fingerprints[i]
                    AND f.token = tokens[i];
                token := NULL;
            ELSE
                verdict := 'lead';
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- Keeps answers (where `keeps`) and resolves the flights that were led (where a token is given).
-- Those who wait are told on the channel, with the token.
CREATE FUNCTION store_answers(
    channel text, orgs text[], fingerprints bytea[], answers bytea[], keeps boolean[],
    ttls_seconds bigint[], tokens uuid[], handoff_seconds double precision
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    at timestamptz;
    waited_for boolean;
BEGIN
    FOR i IN 1 .. cardinality(orgs) LOOP
        at := clock_timestamp();
        IF keeps[i] THEN
            INSERT INTO entries AS e
                (org_id, fingerprint, answer, size_bytes, stored_at, used_at, expires_at)
            VALUES (
                orgs[i], fingerprints[i], answers[i], octet_length(answers[i]), at, at,
                at + make_interval(secs => ttls_seconds[i])
            )
            ON CONFLICT (org_id, fingerprint) DO UPDATE SET
                answer = excluded.answer, size_bytes = excluded.size_bytes,
                stored_at = excluded.stored_at, used_at = excluded.used_at,
                expires_at = excluded.expires_at;
        END IF;
        IF tokens[i] IS NOT NULL THEN
            DELETE FROM flights f
            WHERE f.org_id = orgs[i] AND f.fingerprint = fingerprints[i] AND f.token = tokens[i]
            RETURNING f.shared INTO waited_for;
            IF FOUND AND waited_for THEN
                INSERT INTO handoffs (token, org_id, fingerprint, answer, stored_at, expires_at)
                VALUES (
                    tokens[i], orgs[i], fingerprints[i], answers[i], at,
                    at + make_interval(secs => handoff_seconds)
                );
                PERFORM pg_notify(channel, tokens[i]::text);
            END IF;
        END IF;
    END LOOP;
END $$;
