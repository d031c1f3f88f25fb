-- What the schema is, and how far the server's log has come. First of all files: the others build on it.

CREATE TABLE @schema@.meta (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version integer NOT NULL
);

-- The version of the schema. Stays as it is in every version to come, because every version asks it.
CREATE FUNCTION @schema@.version() RETURNS integer
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT version FROM @schema@.meta $$;

-- The timeline of the log, which rises with every promotion, and how far the log is on the disk, which never goes back on
-- one timeline unless the server has lost what it had promised to keep.
CREATE FUNCTION @schema@.log_position(OUT timeline bigint, OUT flushed bigint)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint,
        (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint
$$;

-- Below every number that is granted from now on, and above every one that was granted before the last promotion: a standby
-- that was promoted may lack the last counters, its timeline is a new one all the same.
CREATE FUNCTION @schema@.floor() RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    timeline CONSTANT bigint := (SELECT p.timeline FROM @schema@.log_position() p);
BEGIN
    -- 40 bits are left below it, and the numbers of grants end at 2^55.
    IF timeline >= 32768 THEN
        RAISE EXCEPTION 'timeline % of the server leaves no room for fencing tokens', timeline
            USING ERRCODE = 'RF004', HINT = 'dump the data into a new cluster, whose timeline begins at 1';
    END IF;
    RETURN timeline << 40;
END
$$;
