-- What the schema is, and what has become of the server since it was made. First of all files: the others build on it.

CREATE TABLE @schema@.meta (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version integer NOT NULL
);

-- The version of the schema. Stays as it is in every version to come, because every version asks it.
CREATE FUNCTION @schema@.version() RETURNS integer
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT version FROM @schema@.meta $$;

-- The timeline of the log, which rises with every promotion.
CREATE FUNCTION @schema@.timeline() RETURNS bigint
LANGUAGE sql VOLATILE
AS $$ SELECT ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint $$;

-- Below every number that is granted from now on, and above every one that was granted before the last promotion: a standby
-- that was promoted may lack the last counters, its timeline is a new one all the same.
--
-- Every acquire calls it. So it and `timeline` have nothing that would keep the server from making one expression of them, and from
-- keeping that: no path of their own, which their callers have pinned, and no rights, which nobody needs for this.
CREATE FUNCTION @schema@.floor() RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    timeline CONSTANT bigint := @schema@.timeline();
BEGIN
    -- 40 bits are left below it, and the numbers of grants end at 2^55.
    IF timeline >= 32768 THEN
        RAISE EXCEPTION 'timeline % of the server leaves no room for fencing tokens', timeline
            USING ERRCODE = 'RF004', HINT = 'dump the data into a new cluster, whose timeline begins at 1';
    END IF;
    RETURN timeline << 40;
END
$$;

-- The servers that this data has been on, and their timelines, in the order in which they were found.
CREATE TABLE @schema@.histories (
    server bigint,
    timeline bigint,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (server, timeline)
);

-- Where whoever has connected is: on which server and timeline, and how much of its log is on the disk, which does not go back
-- on one timeline unless the server has lost what it had confirmed. What was there before, if that was elsewhere, and how
-- many seconds ago it was left.
CREATE FUNCTION @schema@.arrive(
    OUT server bigint, OUT timeline bigint, OUT flushed bigint,
    OUT left_server bigint, OUT left_timeline bigint, OUT left_for double precision
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    arrived timestamptz;
BEGIN
    server := (SELECT c.system_identifier FROM pg_control_system() c);
    timeline := @schema@.timeline();
    flushed := (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint;
    SELECT h.since INTO arrived FROM @schema@.histories h WHERE h.server = arrive.server AND h.timeline = arrive.timeline;
    IF arrived IS NULL THEN
        arrived := clock_timestamp();
        INSERT INTO @schema@.histories VALUES (server, timeline, arrived) ON CONFLICT DO NOTHING;
    END IF;
    SELECT h.server, h.timeline, extract(epoch FROM clock_timestamp() - arrived)
        INTO left_server, left_timeline, left_for
        FROM @schema@.histories h WHERE h.since < arrived ORDER BY h.since DESC LIMIT 1;
END
$$;
