-- Leases: attempts and releases. Those of one process that come at a time are many locks in one statement.

-- Those of many locks that are free and for which nobody waits, each to be held alone: which of the attempts were granted, and with
-- which numbers. The others are left as they are. No attempt is one that looks after a place.
--
-- Rows are locked in the order of names, in which they come: the server goes from one to the next by their index, and is kept from
-- reading the table as it lies there, which it likes to do while there are few names.
CREATE FUNCTION @schema@.acquire_free(
    sessions bigint[], beacon boolean, names text[], nonces bigint[], ttls integer[], holders text[]
) RETURNS TABLE (item integer, number bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    lowest bigint := @schema@.floor();
BEGIN
    PERFORM @schema@.durably();
    RETURN QUERY
        UPDATE @schema@.locks l SET
            number = greatest(l.number + 1, lowest), nonce = a.nonce, ends = clock_timestamp() + a.ttl * interval '1 ms',
            since = clock_timestamp(), session = a.session, beacon = acquire_free.beacon, holder = a.holder
        FROM unnest(sessions, names, nonces, ttls, holders) WITH ORDINALITY AS a(session, name, nonce, ttl, holder, item)
        WHERE l.name = a.name AND NOT l.crowd AND (l.nonce IS NULL OR l.ends <= clock_timestamp())
            AND clock_timestamp() - statement_timestamp() <= a.ttl * interval '1 ms'
        RETURNING a.item::integer, l.number;
END $$;

-- Frees those of many leases that are held alone and for which nobody waits. The others are left as they are.
CREATE FUNCTION @schema@.release_free(names text[], nonces bigint[]) RETURNS TABLE (item integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    -- A release that a crash takes back is a lease that ends at its TTL; nobody was given a token.
    PERFORM set_config('synchronous_commit', 'off', true);
    RETURN QUERY
        UPDATE @schema@.locks l SET nonce = NULL, ends = clock_timestamp()
        FROM unnest(names, nonces) WITH ORDINALITY AS a(name, nonce, item)
        WHERE l.name = a.name AND l.nonce = a.nonce AND NOT l.crowd AND l.ends > clock_timestamp()
        RETURNING a.item::integer;
END $$;

-- One attempt. The same attempt may be asked for again and is one attempt.
--   verb a: without waiting. q: joins the line. l: looks after a place in line, and is gone where it has none.
--   verdict g: granted, with this number; c: and the name was new. w: waits; no turn with this number or a lower one is its own. b: busy.
--   n: stands in line no more. x: was withdrawn, or comes too late. f: too many wait.
CREATE FUNCTION @schema@.acquire_one(
    session bigint, beacon boolean, verb "char", asked text, of_nonce bigint, mode integer, ttl integer, holder text,
    OUT verdict "char", OUT number bigint, OUT waiters integer, OUT others text[]
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    lasts boolean := true;
BEGIN
    IF mode = 0 AND verb <> 'l' THEN
        -- Most locks are free, and nobody waits for them.
        UPDATE @schema@.locks l SET
            number = greatest(l.number + 1, @schema@.floor()), nonce = of_nonce,
            ends = clock_timestamp() + ttl * interval '1 ms', since = clock_timestamp(),
            session = acquire_one.session, beacon = acquire_one.beacon, holder = acquire_one.holder
        WHERE l.name = asked AND NOT l.crowd AND (l.nonce IS NULL OR l.ends <= clock_timestamp())
            AND clock_timestamp() - statement_timestamp() <= ttl * interval '1 ms'
        RETURNING 'g'::"char", l.number, 0 INTO verdict, number, waiters;
    END IF;
    IF verdict IS NULL THEN
        SELECT a.* INTO verdict, number, waiters, others, lasts
        FROM @schema@.attempt(session, beacon, verb, asked, of_nonce, mode, ttl, holder) a;
    END IF;
    IF NOT lasts THEN
        -- A place in line that a crash takes away is missed by who stands there, who joins again.
        PERFORM set_config('synchronous_commit', 'off', true);
    ELSIF current_setting('synchronous_commit') = 'off' THEN
        PERFORM @schema@.durably();
    END IF;
END $$;

-- Several attempts, in the order of names.
CREATE FUNCTION @schema@.acquire(
    sessions bigint[], beacon boolean, verbs "char"[], names text[], nonces bigint[], modes integer[], ttls integer[],
    holders text[]
) RETURNS TABLE (verdict "char", number bigint, waiters integer, others text[])
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    must_last boolean := false;
    lasts boolean;
BEGIN
    FOR item IN 1 .. cardinality(names) LOOP
        SELECT a.* INTO verdict, number, waiters, others, lasts FROM @schema@.attempt(
            sessions[item], beacon, verbs[item], names[item], nonces[item], modes[item], ttls[item], holders[item]
        ) a;
        must_last := must_last OR lasts;
        RETURN NEXT;
    END LOOP;
    IF must_last THEN
        PERFORM @schema@.durably();
    ELSE
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
END $$;

-- `lasts` says whether it has to be on the disk before anybody is told, because something was granted or extended.
CREATE FUNCTION @schema@.attempt(
    session bigint, beacon boolean, verb "char", asked text, of_nonce bigint, mode integer, ttl integer, holder text,
    OUT verdict "char", OUT number bigint, OUT waiters integer, OUT others text[], OUT lasts boolean
) LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    l @schema@.locks;
    last bigint;
    is_new boolean := false;
    is_seen boolean;
    had_turn boolean := false;
BEGIN
    waiters := 0;
    lasts := false;
    IF verb = 'q' THEN
        -- Most of those that have to wait join behind one that has it alone.
        UPDATE @schema@.locks k SET crowd = true, waiters = k.waiters + 1
        WHERE k.name = asked AND k.nonce <> of_nonce AND k.ends > clock_timestamp() AND NOT k.beacon AND k.waiters < 10000
            AND clock_timestamp() - statement_timestamp() <= ttl * interval '1 ms'
            AND NOT EXISTS (SELECT FROM @schema@.places p WHERE p.name = asked AND p.nonce = of_nonce)
        RETURNING k.number, k.waiters - 1, ARRAY[k.holder] INTO number, waiters, others;
        IF FOUND THEN
            INSERT INTO @schema@.places (name, nonce, kind, mode, ttl, since, session, beacon, holder)
            VALUES (asked, of_nonce, 'w', mode, ttl, clock_timestamp(), session, beacon, holder)
            ON CONFLICT ON CONSTRAINT places_pkey DO NOTHING
            RETURNING EXISTS (
                SELECT FROM @schema@.sessions s
                WHERE s.session = attempt.session AND s.seen > clock_timestamp() - @schema@.silence() / 4
            ) INTO is_seen;
            IF FOUND THEN
                IF NOT is_seen THEN
                    PERFORM @schema@.seen(session);
                END IF;
                verdict := 'w';
                RETURN;
            END IF;
            -- It was withdrawn in this moment.
            UPDATE @schema@.locks k SET waiters = k.waiters - 1 WHERE k.name = asked;
        END IF;
        waiters := 0;
        others := NULL;
    ELSIF verb = 'a' THEN
        -- One that does not wait writes nothing where somebody else has it alone.
        SELECT * INTO l FROM @schema@.locks k WHERE k.name = asked;
        IF l.nonce <> of_nonce AND l.ends > clock_timestamp() AND NOT (l.beacon AND @schema@.is_out(l.session)) THEN
            verdict := 'b';
            SELECT o.waiters, o.holders INTO waiters, others FROM @schema@.others(l) o;
            RETURN;
        END IF;
    ELSE
        PERFORM FROM @schema@.locks k WHERE k.name = asked FOR UPDATE;
        had_turn := EXISTS (SELECT FROM @schema@.locks k WHERE k.name = asked AND k.nonce = of_nonce)
            OR EXISTS (SELECT FROM @schema@.places p WHERE p.name = asked AND p.nonce = of_nonce AND p.kind = 'h');
    END IF;
    l := @schema@.settle(asked);
    IF l.name IS NULL AND verb <> 'l' THEN
        is_new := true;
        l := @schema@.make(asked);
    END IF;
    last := l.number;
    number := @schema@.number_of(l, of_nonce);
    IF number IS NULL AND l.crowd AND EXISTS (
        SELECT FROM @schema@.places p WHERE p.name = asked AND p.nonce = of_nonce AND p.kind = 'x'
    ) OR clock_timestamp() - statement_timestamp() > ttl * interval '1 ms' THEN
        number := NULL;
        verdict := 'x';
        RETURN;
    END IF;
    IF number IS NULL AND had_turn AND NOT (beacon AND @schema@.is_out(session)) AND @schema@.admits(l, mode) THEN
        -- Its turn was over before it could ask, as when a commit takes longer than a turn stands, and nobody else was given one. If
        -- it had to stand at the end of the line now, turns would go round where every commit takes so long, and nobody would take one.
        l := @schema@.grant_lease(l, of_nonce, mode, ttl, ttl, session, beacon, holder);
        number := l.number;
    END IF;
    IF number IS NULL AND l.waiters > 0 THEN
        l := @schema@.serve(l);
        number := @schema@.number_of(l, of_nonce);
    END IF;
    IF number IS NOT NULL THEN
        l := @schema@.extend(l, of_nonce, ttl);
        lasts := true;
        verdict := 'g';
    ELSIF verb = 'l' AND NOT EXISTS (
        SELECT FROM @schema@.places p WHERE p.name = asked AND p.nonce = of_nonce AND p.kind = 'w'
    ) THEN
        verdict := 'n';
    ELSIF l.waiters = 0 AND @schema@.admits(l, mode) THEN
        l := @schema@.grant_lease(l, of_nonce, mode, ttl, ttl, session, beacon, holder);
        verdict := CASE WHEN is_new THEN 'c' ELSE 'g' END;
        number := l.number;
    ELSE
        IF verb = 'a' THEN
            verdict := 'b';
        ELSIF l.waiters >= 10000 AND NOT EXISTS (
            SELECT FROM @schema@.places p WHERE p.name = asked AND p.nonce = of_nonce
        ) THEN
            verdict := 'f';
        ELSE
            INSERT INTO @schema@.places (name, nonce, kind, mode, ttl, since, session, beacon, holder)
            VALUES (asked, of_nonce, 'w', mode, ttl, clock_timestamp(), session, beacon, holder)
            ON CONFLICT ON CONSTRAINT places_pkey DO NOTHING;
            IF FOUND THEN
                l.crowd := true;
                l.waiters := l.waiters + 1;
                IF NOT EXISTS (
                    SELECT FROM @schema@.sessions s
                    WHERE s.session = attempt.session AND s.seen > clock_timestamp() - @schema@.silence() / 4
                ) THEN
                    PERFORM @schema@.seen(session);
                END IF;
            END IF;
            verdict := 'w';
            number := l.number;
        END IF;
        SELECT o.waiters, o.holders INTO waiters, others FROM @schema@.others(l) o;
        IF verdict = 'w' THEN
            -- It is told of the others.
            waiters := waiters - 1;
        END IF;
    END IF;
    -- Every grant has a higher number.
    lasts := lasts OR l.number <> last;
    PERFORM @schema@.keep(l);
END $$;

-- Whether an attempt held; it does no more, and stands in no line.
CREATE FUNCTION @schema@.release_one(asked text, of_nonce bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    is_crowded boolean;
    held boolean := true;
    lasts boolean := false;
BEGIN
    UPDATE @schema@.locks SET nonce = NULL, ends = clock_timestamp()
    WHERE name = asked AND nonce = of_nonce AND ends > clock_timestamp() RETURNING crowd INTO is_crowded;
    IF NOT FOUND THEN
        SELECT f.held, f.lasts INTO held, lasts FROM @schema@.leave(asked, of_nonce) f;
    ELSIF is_crowded THEN
        lasts := @schema@.hand_on(asked);
    END IF;
    IF NOT lasts THEN
        -- A release that a crash takes back is a lease that ends at its TTL; nobody was given a token.
        PERFORM set_config('synchronous_commit', 'off', true);
    ELSIF current_setting('synchronous_commit') = 'off' THEN
        PERFORM @schema@.durably();
    END IF;
    RETURN held;
END $$;

-- Several releases, in the order of names.
CREATE FUNCTION @schema@.release(names text[], nonces bigint[]) RETURNS SETOF boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    must_last boolean := false;
    held boolean;
    lasts boolean;
BEGIN
    FOR item IN 1 .. cardinality(names) LOOP
        SELECT f.held, f.lasts INTO held, lasts FROM @schema@.leave(names[item], nonces[item]) f;
        must_last := must_last OR lasts;
        RETURN NEXT held;
    END LOOP;
    IF must_last THEN
        PERFORM @schema@.durably();
    ELSE
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
END $$;

-- Gives a lock to the next one in line, of which it was just taken who had it alone. Says whether it was granted.
CREATE FUNCTION @schema@.hand_on(asked text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    l @schema@.locks;
    last bigint;
    head @schema@.places;
BEGIN
    -- Most hand on to one that is to have it alone as well.
    DELETE FROM @schema@.places p
    WHERE p.name = asked AND p.nonce = (
        SELECT w.nonce FROM @schema@.places w WHERE w.name = asked AND w.kind = 'w' ORDER BY w.place LIMIT 1
    ) AND p.mode = 0 AND NOT p.beacon AND EXISTS (
        SELECT FROM @schema@.sessions s WHERE s.session = p.session AND s.seen > clock_timestamp() - @schema@.silence()
    ) RETURNING * INTO head;
    IF FOUND THEN
        UPDATE @schema@.locks k SET
            number = greatest(k.number + 1, @schema@.floor()), nonce = head.nonce,
            ends = clock_timestamp() + least(head.ttl, @schema@.offer_ms()) * interval '1 ms',
            since = clock_timestamp(), session = head.session, beacon = false, holder = head.holder,
            waiters = k.waiters - 1
        WHERE k.name = asked RETURNING k.number INTO last;
        PERFORM @schema@.tell('ringfence_' || to_hex(head.session), 'turn:' || to_hex(head.nonce) || ':' || last);
        RETURN true;
    END IF;
    l := @schema@.settle(asked);
    last := l.number;
    l := @schema@.serve(l);
    PERFORM @schema@.keep(l);
    RETURN l.number <> last;
END $$;

-- Takes an attempt out of a lock, and serves the line. Says whether it held, and, as `lasts`, whether anybody was granted the lock.
CREATE FUNCTION @schema@.leave(asked text, of_nonce bigint, OUT held boolean, OUT lasts boolean)
LANGUAGE plpgsql AS $$
DECLARE
    l @schema@.locks;
    last bigint;
    left_kind "char";
BEGIN
    held := false;
    lasts := false;
    l := @schema@.settle(asked);
    IF l.name IS NULL THEN
        RETURN;
    END IF;
    last := l.number;
    IF l.nonce = of_nonce THEN
        held := true;
        l.nonce := NULL;
        l.ends := clock_timestamp();
    ELSIF l.crowd THEN
        DELETE FROM @schema@.places WHERE name = asked AND nonce = of_nonce AND kind <> 'x' RETURNING kind INTO left_kind;
        held := coalesce(left_kind = 'h', false);
        IF left_kind = 'w' THEN
            l.waiters := l.waiters - 1;
        END IF;
    END IF;
    l := @schema@.serve(l);
    lasts := l.number <> last;
    PERFORM @schema@.keep(l);
END $$;

-- Undoes an attempt that may be under way still: if it comes after this, it is refused.
CREATE FUNCTION @schema@.withdraw(session bigint, asked text, of_nonce bigint, ttl integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM @schema@.durably();
    -- It has to have a row, whose lock keeps it from being forgotten.
    IF (@schema@.settle(asked)).name IS NULL THEN
        PERFORM @schema@.make(asked);
    END IF;
    PERFORM @schema@.leave(asked, of_nonce);
    INSERT INTO @schema@.places (name, nonce, kind, mode, ttl, ends, since, session, holder)
    VALUES (
        asked, of_nonce, 'x', 0, ttl, clock_timestamp() + ttl * interval '1 ms', clock_timestamp(), withdraw.session, ''
    ) ON CONFLICT (name, nonce) DO NOTHING;
    UPDATE @schema@.locks SET crowd = true WHERE name = asked;
END $$;
