-- Advisory locks (`?recipe=advisory`): the server's own locks, which live as long as the session that took them. What is kept
-- here is what the server's locks lack: a number for each grant, and words about who holds or waits.

-- The key of a name: any client finds it, and two names of one process in 2^64 have the same.
CREATE FUNCTION @schema@.lock_key(name text) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT ('x' || encode(substr(sha256(convert_to(name, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint $$;

-- The numbers of grants. A sequence forgets what it gave last when the server crashes. So a grant's number is below `upto`, which
-- is on the disk before the number is returned, and after a crash the sequence goes on from there.
CREATE SEQUENCE @schema@.advisory_numbers;

CREATE TABLE @schema@.advisory_reserved (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    upto bigint NOT NULL
);
INSERT INTO @schema@.advisory_reserved (upto) VALUES (0);

-- A crash and a promotion empty unlogged tables: while the row is there, the sequence has forgotten nothing. A session asks once,
-- when it begins, because it outlives neither.
CREATE UNLOGGED TABLE @schema@.advisory_mark (one boolean PRIMARY KEY);

-- The sessions that are ours, and by which sign: another one may have the process number of one that is gone.
CREATE UNLOGGED TABLE @schema@.advisory_sessions (
    pid integer PRIMARY KEY,
    sign bigint NOT NULL,
    ttl integer NOT NULL -- in ms
);

-- Who holds and who waits, in words. Whether they do is the server's own knowledge (pg_locks): a row without its lock is of one
-- that is gone. Written a moment after the lock is taken, so that a short hold costs no write.
CREATE UNLOGGED TABLE @schema@.advisory_attempts (
    nonce bigint PRIMARY KEY,
    sign bigint NOT NULL,
    key bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    number bigint, -- null while it waits
    shared boolean NOT NULL,
    since timestamptz NOT NULL,
    holder text NOT NULL
);
CREATE INDEX advisory_attempts_key ON @schema@.advisory_attempts (key);
CREATE INDEX advisory_attempts_sign ON @schema@.advisory_attempts (sign);

-- Raises what is reserved above a number, and has it on the disk when the caller's statement is done, whatever the session or
-- the server says of synchronous_commit. What somebody else has raised can only be seen when it is on the disk.
CREATE FUNCTION @schema@.advisory_reserve(number bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    UPDATE @schema@.advisory_reserved SET upto = number + 65536 WHERE upto <= number;
    RETURN (SELECT upto FROM @schema@.advisory_reserved);
END
$$;

-- Begins a session, and returns below which number its grants need no reservation.
CREATE FUNCTION @schema@.advisory_begin(sign bigint, ttl integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    reserved bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM @schema@.advisory_mark) THEN
        -- One at a time; whoever comes second finds the mark.
        SELECT upto INTO reserved FROM @schema@.advisory_reserved FOR UPDATE;
        IF NOT EXISTS (SELECT FROM @schema@.advisory_mark) THEN
            PERFORM setval('@schema@.advisory_numbers', greatest(reserved, @schema@.floor(), s.last_value))
                FROM @schema@.advisory_numbers s;
            INSERT INTO @schema@.advisory_mark VALUES (true);
        END IF;
    END IF;
    -- What is left of sessions that are gone; two that begin at a time do not wait for each other.
    DELETE FROM @schema@.advisory_sessions WHERE pid IN (
        SELECT s.pid FROM @schema@.advisory_sessions s
        WHERE s.pid = pg_backend_pid() OR NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = s.pid)
        FOR UPDATE SKIP LOCKED
    );
    DELETE FROM @schema@.advisory_attempts WHERE nonce IN (
        SELECT a.nonce FROM @schema@.advisory_attempts a
        WHERE NOT EXISTS (SELECT FROM @schema@.advisory_sessions s WHERE s.sign = a.sign)
        FOR UPDATE SKIP LOCKED
    );
    INSERT INTO @schema@.advisory_sessions VALUES (pg_backend_pid(), advisory_begin.sign, advisory_begin.ttl)
        ON CONFLICT (pid) DO UPDATE SET sign = excluded.sign, ttl = excluded.ttl;
    EXECUTE format('LISTEN %I', 'ringfence_advisory_' || to_hex(advisory_begin.sign));
    RETURN (SELECT upto FROM @schema@.advisory_reserved);
END
$$;

-- The number of the next grant, to be drawn while the lock is held. It looks nothing up by the search path, so that it needs not
-- pin it, which would take as long as the rest of an acquire.
CREATE FUNCTION @schema@.advisory_number() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
AS $$ BEGIN RETURN pg_catalog.nextval('@schema@.advisory_numbers'::pg_catalog.regclass); END $$;

-- Writes about some who hold or wait, and forgets others.
CREATE FUNCTION @schema@.advisory_write(
    gone bigint[], nonces bigint[], signs bigint[], keys bigint[], names text[], numbers bigint[], shares boolean[],
    ages bigint[], holders text[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM @schema@.advisory_attempts WHERE nonce = ANY (gone);
    INSERT INTO @schema@.advisory_attempts (nonce, sign, key, name, number, shared, since, holder)
        SELECT w.nonce, w.sign, w.key, w.name, w.number, w.shared, clock_timestamp() - w.age * interval '1 ms', w.holder
        FROM unnest(nonces, signs, keys, names, numbers, shares, ages, holders)
            AS w(nonce, sign, key, name, number, shared, age, holder)
        ON CONFLICT (nonce) DO UPDATE
            SET sign = excluded.sign, number = excluded.number, shared = excluded.shared, since = excluded.since;
END
$$;

-- The locks of these keys, or all of this database, as the server knows them, with what was written about them. Locks by two
-- integers are others.
CREATE FUNCTION @schema@.advisory_look(
    keys bigint[],
    OUT key bigint, OUT pid integer, OUT held boolean, OUT shared boolean, OUT waits_ms bigint,
    OUT sign bigint, OUT ttl integer,
    OUT nonce bigint, OUT name text, OUT number bigint, OUT age_ms bigint, OUT holder text
) RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH locks AS MATERIALIZED (
        SELECT (l.classid::bigint << 32) | l.objid::bigint AS key, l.pid, l.granted, l.mode = 'ShareLock' AS shared,
            l.waitstart
        FROM pg_locks l
        WHERE l.locktype = 'advisory' AND l.objsubid = 1
            AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    )
    SELECT l.key, l.pid, l.granted, coalesce(a.shared, l.shared),
        (extract(epoch FROM clock_timestamp() - l.waitstart) * 1000)::bigint,
        s.sign, s.ttl, a.nonce, a.name, a.number, (extract(epoch FROM clock_timestamp() - a.since) * 1000)::bigint, a.holder
    FROM locks l
    LEFT JOIN @schema@.advisory_sessions s ON s.pid = l.pid
    LEFT JOIN @schema@.advisory_attempts a ON a.sign = s.sign AND a.key = l.key AND (a.number IS NOT NULL) = l.granted
    WHERE keys IS NULL OR l.key = ANY (keys)
    ORDER BY l.key, l.granted DESC, a.number, l.waitstart
$$;

-- Whose lock it is to be, a session is told by this channel.
CREATE FUNCTION @schema@.advisory_evict(sign bigint, nonce bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT @schema@.tell('ringfence_advisory_' || to_hex(sign), to_hex(nonce)) $$;

-- The process of a session that is there still, if it is that of this sign. Several at once may be there while its lock is freed.
CREATE FUNCTION @schema@.advisory_lives(sign bigint) RETURNS SETOF integer
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.pid FROM @schema@.advisory_sessions s JOIN pg_stat_activity a ON a.pid = s.pid WHERE s.sign = advisory_lives.sign
$$;
