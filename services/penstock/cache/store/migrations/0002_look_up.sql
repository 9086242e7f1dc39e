-- Every lookup reads the entries: who does not want them does not ask.
DROP FUNCTION look_up(
    text[], bytea[], bigint[], boolean[], boolean[], uuid[], uuid[], bigint[]
);

-- One round trip for many lookups. Each finds, in this order: the answer of the flight it awaited,
-- an entry, or a flight to lead or to wait in. Keys come sorted, so that two batches cannot deadlock.
-- verdict: 'miss', 'hit', 'shared', 'lead', 'wait'. `token` is the flight's, with 'lead' and 'wait'.
CREATE FUNCTION look_up(
    orgs text[], fingerprints bytea[], max_ages_seconds bigint[], joins boolean[],
    tokens uuid[], awaited uuid[], leases_ms bigint[]
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
        IF verdict = 'lead' THEN
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
