-- Leases: the rows, and every change to them. A change of a lock begins with the lock of its row, and callers name their
-- locks in the order of their names, so that no two wait for each other.
--
-- A mode is a number: 0 exclusive, -1 shared, n one of at most n permits. Times are the server's, and `clock_timestamp()`
-- because a transaction that waited began before.
--
-- Functions that others call within a statement have no path of their own: their callers have pinned it, and setting it again
-- takes as long as a statement does.

CREATE TABLE @schema@.locks (
    name text COLLATE "C" PRIMARY KEY,
    number bigint NOT NULL, -- of its last grant
    nonce bigint, -- who has it alone; null where nobody does, or several have it
    ends timestamptz NOT NULL, -- until when that one has it; where nobody has it alone, when it was last used
    since timestamptz NOT NULL,
    session bigint, -- of which process that is
    beacon boolean NOT NULL DEFAULT false, -- whether the lease ends with a connection of that process, its beacon
    holder text,
    crowd boolean NOT NULL DEFAULT false, -- whether `places` knows more
    -- How many rows of `places` stand in line. Joining and handing on must not take longer where a thousand wait.
    waiters integer NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- Those that hold together, those that wait, and attempts that must not come back.
CREATE TABLE @schema@.places (
    name text COLLATE "C" NOT NULL,
    nonce bigint NOT NULL,
    kind "char" NOT NULL, -- 'h' holds, 'w' waits, 'x' withdrawn
    place bigint GENERATED ALWAYS AS IDENTITY, -- of one that waits, in its line; of one that holds, in the order of grants
    mode integer NOT NULL,
    ttl integer NOT NULL, -- in milliseconds
    number bigint, -- of one that holds
    ends timestamptz, -- of one that holds or is withdrawn
    since timestamptz NOT NULL,
    session bigint NOT NULL,
    beacon boolean NOT NULL DEFAULT false,
    holder text NOT NULL,
    PRIMARY KEY (name, nonce)
);
CREATE INDEX places_line ON @schema@.places (name, place) WHERE kind = 'w';
CREATE INDEX places_held ON @schema@.places (name, ends) WHERE kind <> 'w';

-- The processes that wait. What a crash of the server takes away, they write again within a second.
CREATE UNLOGGED TABLE @schema@.sessions (
    session bigint PRIMARY KEY,
    seen timestamptz NOT NULL
) WITH (fillfactor = 50);

-- No name that has been forgotten was granted with a higher number.
CREATE TABLE @schema@.forgotten (number bigint NOT NULL);
INSERT INTO @schema@.forgotten VALUES (0);

-- For how long a turn stands that was given to one that waits. As in leases/seek.rs.
CREATE FUNCTION @schema@.offer_ms() RETURNS integer
LANGUAGE sql IMMUTABLE AS 'SELECT 750';

-- How long after its last sign a process that waits counts as gone.
CREATE FUNCTION @schema@.silence() RETURNS interval
LANGUAGE sql IMMUTABLE AS $$SELECT interval '3 s'$$;

-- A grant must be on disk before anybody is told of it, whatever the database's default is.
CREATE FUNCTION @schema@.durably() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
END $$;

-- Tells a process something, on whose channel the server says it when this is committed. Where the server has no room left for
-- messages, because somebody who listens has been in a transaction for long, it would not commit: then nothing is said, and whoever
-- is to hear it finds it out when it looks.
CREATE FUNCTION @schema@.tell(channel text, what text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- Others who commit at the same moment fill the rest.
    IF pg_notification_queue_usage() < 0.9 THEN
        PERFORM pg_notify(channel, what);
    END IF;
END $$;

-- Whether the connection is gone whose end is the end of a process's leases: while it stands, it has this lock alone.
CREATE FUNCTION @schema@.is_out(of_session bigint) RETURNS boolean
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS 'SELECT pg_try_advisory_xact_lock_shared(of_session)';

-- The row of a lock, locked, without what has lapsed. Null where there is none.
CREATE FUNCTION @schema@.settle(asked text) RETURNS @schema@.locks
LANGUAGE plpgsql AS $$
DECLARE
    l @schema@.locks;
BEGIN
    SELECT * INTO l FROM @schema@.locks WHERE name = asked FOR UPDATE;
    IF l.nonce IS NOT NULL AND (l.ends <= clock_timestamp() OR l.beacon AND @schema@.is_out(l.session)) THEN
        l.nonce := NULL;
    END IF;
    IF l.crowd THEN
        -- Those in line are not looked at, of whom there may be many: each is when it is the first.
        DELETE FROM @schema@.places
        WHERE name = asked AND kind <> 'w'
            AND (ends <= clock_timestamp() OR kind = 'h' AND beacon AND @schema@.is_out(session));
    END IF;
    RETURN l;
END $$;

-- The same, of a lock that had no row: from now on it has one. What is new is not forgotten meanwhile.
CREATE FUNCTION @schema@.make(asked text) RETURNS @schema@.locks
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO @schema@.locks (name, number, ends, since)
    SELECT asked, f.number, clock_timestamp(), clock_timestamp() FROM @schema@.forgotten f
    ON CONFLICT (name) DO NOTHING;
    RETURN @schema@.settle(asked);
END $$;

-- Whether a mode fits beside those that hold.
CREATE FUNCTION @schema@.admits(l @schema@.locks, asked integer) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    held record;
BEGIN
    IF l.nonce IS NOT NULL THEN
        RETURN false;
    ELSIF NOT l.crowd THEN
        RETURN true;
    END IF;
    SELECT count(*) AS holders, min(mode) AS least, max(mode) AS most INTO held
    FROM @schema@.places WHERE name = l.name AND kind = 'h';
    RETURN held.holders = 0
        OR asked = -1 AND held.most = -1
        OR asked > 0 AND held.least > 0 AND held.holders < least(asked, held.least);
END $$;

-- Grants, to one that has no place or whose place was taken away.
CREATE FUNCTION @schema@.grant_lease(
    INOUT l @schema@.locks, to_nonce bigint, asked integer, whole_ms integer, first_ms integer, to_session bigint,
    by_beacon boolean, to_holder text
) LANGUAGE plpgsql AS $$
BEGIN
    l.number := greatest(l.number + 1, @schema@.floor());
    l.ends := clock_timestamp() + first_ms * interval '1 ms';
    IF asked = 0 THEN
        l.nonce := to_nonce;
        l.since := clock_timestamp();
        l.session := to_session;
        l.beacon := by_beacon;
        l.holder := to_holder;
    ELSE
        INSERT INTO @schema@.places (name, nonce, kind, mode, ttl, number, ends, since, session, beacon, holder)
        VALUES (l.name, to_nonce, 'h', asked, whole_ms, l.number, l.ends, clock_timestamp(), to_session, by_beacon, to_holder);
        l.crowd := true;
    END IF;
END $$;

-- Gives the lock to the first in line, and to the next ones for as long as they fit. Processes that are gone are passed over.
CREATE FUNCTION @schema@.serve(INOUT l @schema@.locks)
LANGUAGE plpgsql AS $$
DECLARE
    head record;
BEGIN
    WHILE l.waiters > 0 AND l.nonce IS NULL LOOP
        SELECT p.*,
            EXISTS (
                SELECT FROM @schema@.sessions s
                WHERE s.session = p.session AND s.seen > clock_timestamp() - @schema@.silence()
            ) AS lives,
            EXISTS (SELECT FROM @schema@.places h WHERE h.name = l.name AND h.kind = 'h') AS is_held
        INTO head FROM @schema@.places p WHERE p.name = l.name AND p.kind = 'w' ORDER BY p.place LIMIT 1;
        IF head.lives AND NOT (head.beacon AND @schema@.is_out(head.session)) THEN
            EXIT WHEN head.is_held AND NOT @schema@.admits(l, head.mode);
            DELETE FROM @schema@.places WHERE name = l.name AND nonce = head.nonce;
            l := @schema@.grant_lease(
                l, head.nonce, head.mode, head.ttl, least(head.ttl, @schema@.offer_ms()), head.session, head.beacon, head.holder
            );
            PERFORM @schema@.tell('ringfence_' || to_hex(head.session), 'turn:' || to_hex(head.nonce) || ':' || l.number);
        ELSE
            DELETE FROM @schema@.places WHERE name = l.name AND nonce = head.nonce;
        END IF;
        l.waiters := l.waiters - 1;
    END LOOP;
END $$;

-- Writes back what has become of a lock.
CREATE FUNCTION @schema@.keep(l @schema@.locks) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE @schema@.locks SET
        number = l.number, nonce = l.nonce, ends = l.ends, since = l.since, session = l.session, beacon = l.beacon,
        holder = l.holder, waiters = l.waiters,
        crowd = l.waiters > 0 OR l.crowd AND EXISTS (SELECT FROM @schema@.places p WHERE p.name = l.name)
    WHERE name = l.name;
END $$;

-- The number of the lease that an attempt has; null where it has none.
CREATE FUNCTION @schema@.number_of(l @schema@.locks, of_nonce bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
BEGIN
    IF l.nonce = of_nonce THEN
        RETURN l.number;
    ELSIF l.nonce IS NULL AND l.crowd THEN
        RETURN (SELECT p.number FROM @schema@.places p WHERE p.name = l.name AND p.nonce = of_nonce AND p.kind = 'h');
    END IF;
    RETURN NULL;
END $$;

-- Lets a lease last for its whole TTL from now on, however long it was given for.
CREATE FUNCTION @schema@.extend(INOUT l @schema@.locks, of_nonce bigint, whole_ms integer)
LANGUAGE plpgsql AS $$
BEGIN
    IF l.nonce = of_nonce THEN
        l.ends := clock_timestamp() + whole_ms * interval '1 ms';
    ELSE
        UPDATE @schema@.places SET ends = clock_timestamp() + whole_ms * interval '1 ms'
        WHERE name = l.name AND nonce = of_nonce AND kind = 'h';
    END IF;
END $$;

-- Who is in the way: how many wait, and up to eight that hold.
CREATE FUNCTION @schema@.others(l @schema@.locks, OUT waiters integer, OUT holders text[])
LANGUAGE plpgsql AS $$
BEGIN
    waiters := l.waiters;
    IF l.nonce IS NOT NULL THEN
        holders := ARRAY[l.holder];
    ELSIF l.crowd THEN
        holders := ARRAY(
            SELECT h.holder FROM @schema@.places h WHERE h.name = l.name AND h.kind = 'h' ORDER BY h.place LIMIT 8
        );
    END IF;
END $$;

-- A sign of life of a process that waits.
CREATE FUNCTION @schema@.seen(of_session bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE @schema@.sessions s SET seen = clock_timestamp()
    WHERE s.session = of_session AND s.seen < clock_timestamp() - @schema@.silence() / 4;
    IF NOT FOUND AND NOT EXISTS (SELECT FROM @schema@.sessions s WHERE s.session = of_session) THEN
        INSERT INTO @schema@.sessions VALUES (of_session, clock_timestamp()) ON CONFLICT (session) DO NOTHING;
        -- Two that do so at once, each with the row of a lock, must not wait for each other.
        DELETE FROM @schema@.sessions WHERE session IN (
            SELECT s.session FROM @schema@.sessions s
            WHERE s.seen < clock_timestamp() - 20 * @schema@.silence() FOR UPDATE SKIP LOCKED
        );
    END IF;
END $$;

-- Looks after the places of a process: which of its attempts are gone, and stand in line no more, because their turn has come or
-- their place is lost; and which are about to go, if the transaction commits that has taken their place away. A turn counts from
-- before its commit, and until then they are seen to stand. Serves the lines in which they stand, where a lease has lapsed or its
-- beacon is out.
CREATE FUNCTION @schema@.look(names text[], nonces bigint[]) RETURNS TABLE (nonce bigint, is_gone boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    asked text;
BEGIN
    FOR asked IN
        SELECT DISTINCT l.name COLLATE "C" FROM unnest(names) AS n JOIN @schema@.locks l ON l.name = n
        WHERE l.crowd AND CASE
            WHEN l.nonce IS NOT NULL THEN l.ends <= clock_timestamp() OR l.beacon AND @schema@.is_out(l.session)
            ELSE NOT EXISTS (SELECT FROM @schema@.places h WHERE h.name = l.name AND h.kind = 'h')
                OR EXISTS (
                    SELECT FROM @schema@.places h
                    WHERE h.name = l.name AND h.kind = 'h'
                        AND (h.ends <= clock_timestamp() OR h.beacon AND @schema@.is_out(h.session))
                )
        END
        ORDER BY 1
    LOOP
        PERFORM @schema@.durably();
        PERFORM @schema@.keep(@schema@.serve(@schema@.settle(asked)));
    END LOOP;
    RETURN QUERY
        SELECT a.nonce, p.nonce IS NULL FROM unnest(names, nonces) AS a(name, nonce)
        LEFT JOIN @schema@.places p ON p.name = a.name AND p.nonce = a.nonce AND p.kind = 'w'
        -- Who removes a row leaves a number in its `xmax`, though nobody else sees that it is gone before the commit.
        WHERE p.nonce IS NULL OR p.xmax <> 0;
END $$;

-- For each lease, whether it lives; it does for its whole TTL from now on.
CREATE FUNCTION @schema@.renew(names text[], nonces bigint[], ttls integer[]) RETURNS SETOF boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM @schema@.durably();
    FOR item IN 1 .. cardinality(names) LOOP
        UPDATE @schema@.locks SET ends = clock_timestamp() + ttls[item] * interval '1 ms'
        WHERE name = names[item] AND nonce = nonces[item] AND ends > clock_timestamp();
        IF NOT FOUND THEN
            UPDATE @schema@.places SET ends = clock_timestamp() + ttls[item] * interval '1 ms'
            WHERE name = names[item] AND nonce = nonces[item] AND kind = 'h' AND ends > clock_timestamp();
        END IF;
        RETURN NEXT FOUND;
    END LOOP;
END $$;

-- Turns a lease held alone into a shared one, with its number, and lets those in who fit beside it. Says whether it lives.
CREATE FUNCTION @schema@.downgrade(asked text, of_nonce bigint, whole_ms integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    l @schema@.locks;
BEGIN
    PERFORM @schema@.durably();
    l := @schema@.settle(asked);
    IF @schema@.number_of(l, of_nonce) IS NULL THEN
        RETURN false;
    END IF;
    l := @schema@.extend(l, of_nonce, whole_ms);
    IF l.nonce = of_nonce THEN
        l.nonce := NULL;
        l.crowd := true;
        INSERT INTO @schema@.places (name, nonce, kind, mode, ttl, number, ends, since, session, beacon, holder)
        VALUES (asked, of_nonce, 'h', -1, whole_ms, l.number, l.ends, l.since, l.session, l.beacon, l.holder);
    END IF;
    PERFORM @schema@.keep(@schema@.serve(l));
    RETURN true;
END $$;

-- An operator takes a lease from its holder, who is told. Says whether there was one.
CREATE FUNCTION @schema@.evict(asked text, of_nonce bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    l @schema@.locks;
    of_session bigint;
BEGIN
    PERFORM @schema@.durably();
    l := @schema@.settle(asked);
    IF l.nonce = of_nonce THEN
        of_session := l.session;
    ELSE
        SELECT p.session INTO of_session FROM @schema@.places p
        WHERE p.name = asked AND p.nonce = of_nonce AND p.kind = 'h';
    END IF;
    IF of_session IS NULL THEN
        RETURN false;
    END IF;
    PERFORM @schema@.leave(asked, of_nonce);
    PERFORM @schema@.tell('ringfence_' || to_hex(of_session), 'lost:' || to_hex(of_nonce) || ':0');
    RETURN true;
END $$;

-- Everybody at the locks from a name on, in the order of names: those that hold in the order of their grants, then those that
-- wait in the order of their turns. Ages and what is left are in milliseconds.
CREATE FUNCTION @schema@.show(from_name text, prefix text, after text, most integer) RETURNS TABLE (
    name text, kind "char", nonce bigint, mode integer, number bigint, age bigint, remaining bigint, holder text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    l record;
    shown integer := 0;
    now timestamptz := clock_timestamp();
BEGIN
    FOR l IN
        SELECT k.* FROM @schema@.locks k
        WHERE k.name >= from_name AND (k.nonce IS NOT NULL AND k.ends > now OR k.crowd) ORDER BY k.name
    LOOP
        EXIT WHEN NOT starts_with(l.name, prefix) OR shown >= most;
        CONTINUE WHEN l.name = after;
        RETURN QUERY
            SELECT l.name::text, 'h'::"char", l.nonce::bigint, 0, l.number::bigint, @schema@.millis(now - l.since),
                @schema@.millis(l.ends - now), l.holder::text
            WHERE l.nonce IS NOT NULL AND l.ends > now AND NOT (l.beacon AND @schema@.is_out(l.session))
            UNION ALL (
                SELECT p.name, p.kind, p.nonce, p.mode, p.number, @schema@.millis(now - p.since),
                    @schema@.millis(p.ends - now), p.holder
                FROM @schema@.places p
                WHERE p.name = l.name AND (p.kind = 'h' AND p.ends > now OR p.kind = 'w')
                    AND NOT (p.beacon AND @schema@.is_out(p.session))
                ORDER BY p.kind, p.place
            );
        IF FOUND THEN
            shown := shown + 1;
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION @schema@.millis(span interval) RETURNS bigint
LANGUAGE sql IMMUTABLE AS 'SELECT greatest(0, extract(epoch FROM span) * 1000)::bigint';

-- Forgets names that nobody has used for an hour, and keeps in mind what their numbers were below. Says how many.
CREATE FUNCTION @schema@.tidy() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    forgotten_now record;
BEGIN
    PERFORM @schema@.durably();
    -- One at a time; and nobody makes a row anew before this is over, because its name is taken until then.
    PERFORM FROM @schema@.forgotten FOR UPDATE;
    -- What the dead have left in places, nobody else takes away where nobody uses the name again.
    PERFORM @schema@.keep(@schema@.serve(@schema@.settle(idle.name))) FROM (
        SELECT l.name FROM @schema@.locks l
        WHERE l.crowd AND l.ends < clock_timestamp() - interval '1 hour'
        ORDER BY l.name LIMIT 10000 FOR UPDATE SKIP LOCKED
    ) idle;
    WITH idle AS (
        DELETE FROM @schema@.locks WHERE name IN (
            SELECT name FROM @schema@.locks
            WHERE NOT crowd AND ends < clock_timestamp() - interval '1 hour'
            ORDER BY name LIMIT 10000 FOR UPDATE SKIP LOCKED
        ) RETURNING number
    ) SELECT count(*) AS names, max(number) AS highest INTO forgotten_now FROM idle;
    UPDATE @schema@.forgotten f SET number = greatest(f.number, forgotten_now.highest);
    RETURN forgotten_now.names;
END $$;
