
-- The removal of records, and which there are.

-- Removes a record, if the fence lets the token write to it. Verdicts as of `fenced`.
CREATE FUNCTION @schema@.remove_record(of_live boolean, asked text, of_field text, sequence bigint, of_nonce bigint)
RETURNS TABLE (verdict "char", value bytea, version bigint, other bigint, other_nonce bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    -- Leaves the lock and the record locked, so that nothing changes until this is over.
    SELECT f.* INTO verdict, value, version, other, other_nonce
    FROM @schema@.fenced(of_live, asked, of_field, sequence, of_nonce, '') f;
    IF verdict = 'o' THEN
        -- Of one that holds alone, the first token is below all that may still pass: nothing is left for a mark to refuse.
        DELETE FROM @schema@.records k
        WHERE of_live AND k.live AND k.name = asked AND k.field = of_field AND sequence & 255 = 0
            AND EXISTS (SELECT FROM @schema@.locks l WHERE l.name = asked AND l.nonce = of_nonce);
        IF NOT FOUND THEN
            UPDATE @schema@.records k SET value = NULL
            WHERE k.live = of_live AND k.name = asked AND k.field = of_field;
        END IF;
    END IF;
    RETURN NEXT;
END $$;

-- The records that hold a value, from a lock's name on, and those of at most so many locks.
CREATE FUNCTION @schema@.list_records(of_live boolean, from_name text, prefix text, after text, most integer)
RETURNS TABLE (name text, field text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    r record;
    locks integer := 0;
BEGIN
    FOR r IN
        SELECT k.name, k.field FROM @schema@.records k
        WHERE k.live = of_live AND k.name >= from_name AND k.value IS NOT NULL ORDER BY k.name, k.field
    LOOP
        EXIT WHEN NOT starts_with(r.name, prefix);
        CONTINUE WHEN r.name = after;
        IF r.name IS DISTINCT FROM name THEN
            EXIT WHEN locks >= most;
            locks := locks + 1;
        END IF;
        name := r.name;
        field := r.field;
        RETURN NEXT;
    END LOOP;
END $$;
