-- Version 1 of an outbox in a PostgreSQL database (13 or later).

CREATE SCHEMA ringfence_outbox;

-- Which version of all this is here.
CREATE TABLE ringfence_outbox.meta (version integer NOT NULL);
INSERT INTO ringfence_outbox.meta VALUES (1);

CREATE SEQUENCE ringfence_outbox.numbers;

-- What is still to be sent. What a sink has taken is deleted.
CREATE TABLE ringfence_outbox.messages (
    -- Rises with every message of a key, in the order in which their transactions were committed.
    number bigint PRIMARY KEY,
    -- Stays the same whenever the message is sent again.
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    topic text COLLATE "C" NOT NULL
        CHECK (octet_length(topic) BETWEEN 1 AND 255 AND topic !~ '[\u0001-\u001f\u007f]'),
    -- What is sent in order. A message without a key has no order.
    key text COLLATE "C"
        CHECK (octet_length(key) BETWEEN 1 AND 255 AND key !~ '[\u0001-\u001f\u007f]'),
    payload bytea NOT NULL CHECK (octet_length(payload) <= 262144),
    -- In milliseconds since the start of 1970, as all times here.
    enqueued_at bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
    -- Which relay may send it: the one that has claimed this lane. Keys are dealt to lanes by the hash that partitions are dealt by.
    lane smallint NOT NULL GENERATED ALWAYS AS ((hashtextextended(coalesce(key, id::text), 0) & 15)::smallint) STORED,
    -- How often it was given to a sink. It is counted before.
    attempts bigint NOT NULL DEFAULT 0,
    -- How often a sink has said no to it.
    refusals bigint NOT NULL DEFAULT 0,
    -- Before this its key is not tried again.
    retry_at bigint,
    dead_at bigint,
    last_error text
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

CREATE INDEX messages_due ON ringfence_outbox.messages (lane, number) WHERE dead_at IS NULL;
CREATE INDEX messages_waiting ON ringfence_outbox.messages (key, retry_at) WHERE retry_at IS NOT NULL AND dead_at IS NULL;
CREATE INDEX messages_dead ON ringfence_outbox.messages (number) WHERE dead_at IS NOT NULL;

-- Who may send what: a relay claims a lane, and every claim has a higher token than the one before.
CREATE TABLE ringfence_outbox.lanes (
    lane smallint PRIMARY KEY,
    token bigint NOT NULL DEFAULT 0,
    -- By the clock of this server.
    until bigint NOT NULL DEFAULT 0,
    clock text NOT NULL DEFAULT '',
    relay text NOT NULL DEFAULT ''
) WITH (fillfactor = 50);
INSERT INTO ringfence_outbox.lanes (lane) SELECT generate_series(0, 15);

-- Numbers a message. Whoever numbers one of a key keeps others from doing so until the transaction ends; so the numbers of a key
-- rise in the order of its commits. Locks are for groups of keys, because the server has room for some thousands only.
CREATE FUNCTION ringfence_outbox.number() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- A standby that was promoted may lack the last numbers, and who keeps the highest would take new messages for old ones. A
    -- promotion begins another timeline of the log: on each, numbers are above 2^40 for every one before it.
    lowest CONSTANT bigint :=
        (('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint - 1) << 40;
BEGIN
    IF NEW.key IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(1919905122, (hashtextextended(NEW.key, 1) & 1023)::integer);
    END IF;
    NEW.number := nextval('ringfence_outbox.numbers');
    IF NEW.number <= lowest THEN
        -- The first one lifts the numbers of all, whoever comes at the same time waits for it. They go on from where they are, and so
        -- never back, where a copy of the data begins with the first timeline again.
        PERFORM pg_advisory_xact_lock(1919905122, 1024);
        NEW.number := nextval('ringfence_outbox.numbers');
        IF NEW.number <= lowest THEN
            NEW.number := setval('ringfence_outbox.numbers', lowest + 1);
        END IF;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER number BEFORE INSERT ON ringfence_outbox.messages
    FOR EACH ROW EXECUTE FUNCTION ringfence_outbox.number();

-- Wakes the relays when the transaction is committed. Where the server has no room left for messages, because somebody who listens has
-- been in a transaction for long, it would not be: then nobody is woken, and a relay finds the message when it looks.
CREATE FUNCTION ringfence_outbox.wake() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Others who commit at the same moment fill the rest.
    IF pg_notification_queue_usage() < 0.9 THEN
        PERFORM pg_notify('ringfence_outbox', '');
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER wake AFTER INSERT ON ringfence_outbox.messages
    FOR EACH STATEMENT EXECUTE FUNCTION ringfence_outbox.wake();

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA ringfence_outbox FROM PUBLIC;
