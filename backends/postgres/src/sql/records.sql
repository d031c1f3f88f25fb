-- Records: small values behind the fence of their lock. Those of leases and those of advisory locks are apart, as their tokens
-- are: `live` says that a token's lease has to live in this database.

CREATE TABLE @schema@.records (
    live boolean NOT NULL,
    name text COLLATE "C" NOT NULL,
    field text COLLATE "C" NOT NULL,
    mark bigint NOT NULL, -- the highest sequence that opened it,
    mark_nonce bigint NOT NULL, -- and whose it was
    value bytea, -- null where it was opened only
    version bigint NOT NULL DEFAULT 0,
    written_by bigint, -- the sequence and the nonce that wrote it
    written_nonce bigint,
    PRIMARY KEY (live, name, field)
);

-- Opens a record, or writes it where `bytes` are given, if the fence lets the token pass.
--   verdict o: done; with what the record holds. c: another token has this sequence. b: below the mark. l: its lease is over.
--   n: it has not opened the record. With c, b and l, the token that is in the way, if there is one.
CREATE FUNCTION @schema@.fenced(live boolean, asked text, of_field text, sequence bigint, of_nonce bigint, bytes bytea)
RETURNS TABLE (verdict "char", value bytea, version bigint, other bigint, other_nonce bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    l @schema@.locks;
    r @schema@.records;
BEGIN
    -- What a gate asks for each request: may a token pass whose mark stands and whose lease lives? There is nothing to change, so
    -- that nothing is locked, and no commit waits for the disk.
    IF bytes IS NULL THEN
        IF live THEN
            SELECT * INTO l FROM @schema@.locks k
            WHERE k.name = asked AND k.number = sequence >> 8 AND k.nonce = of_nonce AND k.ends > clock_timestamp();
        END IF;
        IF l.nonce IS NOT NULL OR NOT live THEN
            RETURN QUERY SELECT 'o'::"char", k.value, k.version, written_by, written_nonce FROM @schema@.records k
            WHERE k.live = fenced.live AND k.name = asked AND k.field = of_field AND k.mark = sequence
                AND k.mark_nonce = of_nonce;
            IF FOUND THEN
                RETURN;
            END IF;
        END IF;
    END IF;
    PERFORM @schema@.durably();
    -- While its lock is locked, nobody is granted it, and no record of it changes.
    IF live THEN
        SELECT * INTO l FROM @schema@.locks k WHERE k.name = asked FOR UPDATE;
    END IF;
    SELECT * INTO r FROM @schema@.records k
    WHERE k.live = fenced.live AND k.name = asked AND k.field = of_field FOR UPDATE;
    IF r.mark IS NOT NULL AND (r.mark > sequence OR r.mark = sequence AND r.mark_nonce <> of_nonce) THEN
        verdict := CASE WHEN r.mark = sequence THEN 'c' ELSE 'b' END;
        other := r.mark;
        other_nonce := r.mark_nonce;
        RETURN NEXT;
        RETURN;
    END IF;
    IF live THEN
        -- The low 8 bits of a sequence count what a process handed on under one grant.
        IF l.nonce IS NOT NULL AND l.ends > clock_timestamp() THEN
            other := l.number << 8;
            other_nonce := l.nonce;
        ELSIF l.crowd THEN
            SELECT p.number << 8, p.nonce INTO other, other_nonce FROM @schema@.places p
            WHERE p.name = asked AND p.kind = 'h' AND p.ends > clock_timestamp()
            ORDER BY p.number = sequence >> 8 DESC, p.place LIMIT 1;
        END IF;
        IF other IS NULL OR other >> 8 <> sequence >> 8 OR other_nonce <> of_nonce THEN
            verdict := CASE WHEN other >> 8 = sequence >> 8 THEN 'c' ELSE 'l' END;
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;
    IF bytes IS NULL THEN
        INSERT INTO @schema@.records (live, name, field, mark, mark_nonce) VALUES (live, asked, of_field, sequence, of_nonce)
        ON CONFLICT (live, name, field) DO UPDATE SET mark = sequence, mark_nonce = of_nonce
        -- Of two that open it for the first time at once, the lower token may come second.
        WHERE records.mark < sequence OR records.mark = sequence AND records.mark_nonce = of_nonce
        RETURNING 'o', records.value, records.version, written_by, written_nonce
        INTO verdict, value, version, other, other_nonce;
        IF NOT FOUND THEN
            RETURN QUERY SELECT * FROM @schema@.fenced(live, asked, of_field, sequence, of_nonce, NULL);
            RETURN;
        END IF;
    ELSE
        UPDATE @schema@.records k SET value = bytes, version = k.version + 1, written_by = sequence, written_nonce = of_nonce
        WHERE k.live = fenced.live AND k.name = asked AND k.field = of_field AND k.mark = sequence
            AND k.mark_nonce = of_nonce
        RETURNING 'o', k.version INTO verdict, version;
        IF NOT FOUND THEN
            verdict := 'n';
        END IF;
        other := NULL;
        other_nonce := NULL;
    END IF;
    RETURN NEXT;
END $$;

-- A record as it stands; none where it was never written.
CREATE FUNCTION @schema@.recorded(of_live boolean, asked text, of_field text)
RETURNS TABLE (verdict "char", value bytea, version bigint, other bigint, other_nonce bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'o', value, version, written_by, written_nonce FROM @schema@.records
    WHERE live = of_live AND name = asked AND field = of_field
$$;
