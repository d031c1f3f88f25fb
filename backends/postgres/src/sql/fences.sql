-- Resources that refuse stale tokens: the highest token that each has seen, and a trigger that lets nobody else write to a table.

CREATE TABLE @schema@.marks (
    resource text COLLATE "C" PRIMARY KEY,
    sequence bigint NOT NULL,
    nonce text COLLATE "C" NOT NULL,
    -- The transaction that admitted it last: within it, and nowhere else, the resource is open. Its time stands beside its number
    -- because a dump that is restored brings the numbers into a server that will use them again.
    admitted_in xid8 NOT NULL,
    admitted_at timestamptz NOT NULL
) WITH (fillfactor = 70);

-- Admits a token to a resource for the rest of this transaction: raises the resource's mark to it, or refuses.
--
-- The mark stays locked until the transaction ends. So no other token is admitted meanwhile, and mark and work are committed
-- together or not at all; on the disk, whatever synchronous_commit says.
CREATE FUNCTION @schema@.admit(resource text, sequence bigint, nonce text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    seen @schema@.marks;
BEGIN
    PERFORM @schema@.check_name('resource', admit.resource);
    -- A mark that a crash could take back would be none.
    PERFORM @schema@.durably();
    IF admit.sequence IS NULL OR admit.sequence < 0 OR admit.nonce IS NULL OR admit.nonce !~ '^[1-9a-f][0-9a-f]{0,15}$' THEN
        RAISE invalid_parameter_value
            USING MESSAGE = format('(%s, %L) is no token', coalesce(admit.sequence::text, 'NULL'), left(admit.nonce, 100)),
                HINT = 'The token 1024.7b is the sequence 1024 and the nonce ''7b''.';
    END IF;
    INSERT INTO @schema@.marks AS mark (resource, sequence, nonce, admitted_in, admitted_at)
    VALUES (admit.resource, admit.sequence, admit.nonce, pg_current_xact_id(), now())
    ON CONFLICT (resource) DO UPDATE
        SET (sequence, nonce, admitted_in, admitted_at)
            = ROW (excluded.sequence, excluded.nonce, excluded.admitted_in, excluded.admitted_at)
        WHERE mark.sequence < excluded.sequence
            OR (mark.sequence = excluded.sequence AND mark.nonce = excluded.nonce);
    IF FOUND THEN
        RETURN;
    END IF;
    SELECT * INTO STRICT seen FROM @schema@.marks AS mark WHERE mark.resource = admit.resource;
    IF seen.sequence = admit.sequence THEN
        RAISE EXCEPTION USING ERRCODE = 'RF002',
            MESSAGE = format('token %s.%s has the sequence of %s.%s, which %s has seen', admit.sequence, admit.nonce,
                seen.sequence, seen.nonce, admit.resource),
            HINT = 'Two holders were given one number, so a lock service has lost its memory: stop both, and look at it.';
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'RF001',
        MESSAGE = format('token %s.%s is stale: %s has seen %s.%s', admit.sequence, admit.nonce, admit.resource,
            seen.sequence, seen.nonce),
        HINT = 'Stop, and acquire the lock again.';
END;
$$;

-- Fences a table: from now on an UPDATE or DELETE of a row, whoever sends it, needs a token that was admitted in the same
-- transaction to the row's resource. Returns what the names of the resources begin with; the row's key follows.
--
-- Table and key are written as in SQL: folded to lower case unless quoted. It runs with the rights of its caller, who has to own
-- the table or to have TRIGGER and UPDATE on it. It waits for the transactions that write to the table, and others wait behind it.
-- What is fenced already stays as it is. A name stands in quotes where it needs them, whatever a session wants for its own.
CREATE FUNCTION @schema@.fence_table(target text, key text) RETURNS text
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
DECLARE
    relation regclass;
    key_parts text[];
    key_column pg_attribute;
    prefix text;
    fenced_by bytea;
BEGIN
    BEGIN
        relation := to_regclass(target);
        key_parts := parse_ident(key);
    EXCEPTION WHEN invalid_name OR syntax_error OR invalid_parameter_value OR feature_not_supported THEN
        RAISE EXCEPTION USING ERRCODE = 'RF007', MESSAGE = format('%s by %s: %s', target, key, SQLERRM),
            HINT = 'Write schema.table and column as in SQL.';
    END;
    IF relation IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'RF007', MESSAGE = format('there is no table %s', target),
            HINT = 'Write schema.table. As in SQL, a name is folded to lower case unless it stands in double quotes.';
    END IF;
    IF (SELECT relkind FROM pg_class WHERE oid = relation) <> 'r'
        OR EXISTS (SELECT FROM pg_inherits WHERE inhparent = relation) THEN
        RAISE EXCEPTION USING ERRCODE = 'RF007', MESSAGE = format('%s cannot be fenced as a whole', target),
            HINT = 'Fence ordinary tables, and of a partitioned table each partition: a later one would not be fenced.';
    END IF;
    IF NOT has_table_privilege(relation, 'TRIGGER') OR NOT has_table_privilege(relation, 'UPDATE') THEN
        RAISE EXCEPTION USING ERRCODE = 'RF008', MESSAGE = format('role %I may not fence %s', current_user, relation),
            HINT = format('Have its owner fence it, or GRANT TRIGGER, UPDATE ON %s TO %I.', relation, current_user);
    END IF;
    -- Before anything else is looked at, so that two who fence it at once come one after the other.
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', relation);
    SELECT * INTO key_column FROM pg_attribute
        WHERE attrelid = relation AND attname = key_parts[1] AND attnum > 0 AND NOT attisdropped;
    IF NOT FOUND OR array_length(key_parts, 1) <> 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'RF007', MESSAGE = format('table %s has no column %s', target, key),
            HINT = 'Name the column that tells its rows apart, as in id.';
    END IF;
    -- What is computed when it is read, no trigger sees.
    IF NOT key_column.attnotnull OR key_column.attgenerated = 'v' OR key_column.atttypid <> ALL (@schema@.key_types()) THEN
        RAISE EXCEPTION USING ERRCODE = 'RF007',
            MESSAGE = format('column %s of table %s cannot name rows: it is %s%s', key, target,
                format_type(key_column.atttypid, key_column.atttypmod),
                CASE
                    WHEN NOT key_column.attnotnull THEN ' and may be NULL'
                    WHEN key_column.attgenerated = 'v' THEN ' and not stored'
                    ELSE ''
                END),
            HINT = 'A key is stored, NOT NULL and smallint, integer, bigint, text, varchar or uuid.';
    END IF;
    SELECT tgargs INTO fenced_by FROM pg_trigger WHERE tgrelid = relation AND tgname = 'ringfence_fence';
    IF FOUND THEN
        -- The table may have been renamed since; its resources keep their names, and so their marks. Each argument ends with a zero, whose
        -- backslash means the same whatever a session wants of its own (`standard_conforming_strings`).
        prefix := convert_from(substr(fenced_by, 1, position(E'\\x00' IN fenced_by) - 1), 'UTF8');
        IF fenced_by <> convert_to(prefix, 'UTF8') || E'\\x00' || convert_to(key_column.attname, 'UTF8') || E'\\x00' THEN
            RAISE EXCEPTION USING ERRCODE = 'RF007',
                MESSAGE = format('table %s is fenced already, by another key', target),
                HINT = 'Drop its triggers ringfence_fence and ringfence_truncate first.';
        END IF;
        RETURN prefix;
    END IF;
    SELECT format('%I.%I/', nspname, relname) INTO STRICT prefix
        FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE pg_class.oid = relation;
    EXECUTE format('CREATE TRIGGER ringfence_fence AFTER INSERT OR UPDATE OR DELETE ON %s
        FOR EACH ROW EXECUTE FUNCTION @schema@.check_row(%L, %L)', relation, prefix, key_column.attname);
    EXECUTE format('CREATE TRIGGER ringfence_truncate BEFORE TRUNCATE ON %s
        FOR EACH STATEMENT EXECUTE FUNCTION @schema@.refuse_truncate()', relation);
    RETURN prefix;
END;
$$;

-- The types of keys. What is equal in others may be written in several ways, or as a setting of the session says.
CREATE FUNCTION @schema@.key_types() RETURNS regtype[]
LANGUAGE sql IMMUTABLE AS $$ SELECT '{int2,int4,int8,text,varchar,uuid}'::pg_catalog.regtype[] $$;

-- The trigger of a fenced table's rows; its arguments are what the names of their resources begin with, and the key's column.
--
-- To leave a key, by UPDATE or DELETE, takes a token. To come to one, by INSERT or by an UPDATE that changes the key, takes one
-- if any was ever admitted there: so a stale holder cannot put back what its successor has deleted.
--
-- It looks after the row is written, because what other triggers make of it is known only then; the error undoes the statement.
CREATE FUNCTION @schema@.check_row() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    left_key text;
    new_key text;
    needs_token text;
BEGIN
    -- Anybody can put this trigger on a table of their own. A key of another type would have functions of theirs run with the
    -- rights of our owner, and so would a key that is no column but the name of a function.
    IF NOT EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = TG_RELID AND attname = TG_ARGV[1] AND NOT attisdropped AND atttypid = ANY (@schema@.key_types())
    ) THEN
        RAISE EXCEPTION USING ERRCODE = 'RF006',
            MESSAGE = format('%I.%I is fenced by %s, which is no key of it any more', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_ARGV[1]),
            HINT = 'Drop its triggers ringfence_fence and ringfence_truncate, and fence it anew.';
    END IF;
    EXECUTE format('SELECT ($1).%1$I::text, ($2).%1$I::text', TG_ARGV[1]) INTO left_key, new_key USING OLD, NEW;
    SELECT touched.resource INTO needs_token
    FROM (VALUES (TG_ARGV[0] || left_key, TG_OP <> 'INSERT'), (TG_ARGV[0] || new_key, false)) AS touched (resource, is_left)
        LEFT JOIN @schema@.marks AS mark ON mark.resource = touched.resource
    WHERE (touched.is_left OR mark.resource IS NOT NULL)
        AND (mark.admitted_in, mark.admitted_at) IS DISTINCT FROM (pg_current_xact_id(), now())
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'RF006',
            MESSAGE = format('%s of %s without a token: the table is fenced', TG_OP, needs_token),
            HINT = format('In the same transaction, SELECT @schema@.admit(%L, sequence, nonce) comes first.', needs_token);
    END IF;
    -- REPEATABLE READ and SERIALIZABLE see the marks of their snapshot. A newer one shows only to whoever would write it.
    IF new_key IS DISTINCT FROM left_key AND current_setting('transaction_isolation') IN ('repeatable read', 'serializable')
        AND NOT EXISTS (SELECT FROM @schema@.marks WHERE resource = TG_ARGV[0] || new_key) THEN
        BEGIN
            INSERT INTO @schema@.marks VALUES (TG_ARGV[0] || new_key, 0, '0', pg_current_xact_id(), now());
            RAISE EXCEPTION USING ERRCODE = 'RF009', MESSAGE = 'there is none, and none stays';
        EXCEPTION
            WHEN SQLSTATE 'RF009' THEN NULL;
            WHEN unique_violation THEN
                RAISE serialization_failure USING MESSAGE = format('the snapshot of this %s transaction is older than the mark of %s',
                        upper(current_setting('transaction_isolation')), TG_ARGV[0] || new_key),
                    HINT = 'Roll back, and begin again with the token.';
        END;
    END IF;
    RETURN NULL;
END;
$$;

CREATE FUNCTION @schema@.refuse_truncate() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'RF006',
        MESSAGE = format('TRUNCATE of %I.%I: the table is fenced, row by row', TG_TABLE_SCHEMA, TG_TABLE_NAME),
        HINT = 'Delete the rows, each with its token; its owner can disable the trigger ringfence_truncate.';
END;
$$;
