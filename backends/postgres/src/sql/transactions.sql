-- Locks by name that live as long as the caller's transaction: in the server's own queue, freed by its commit or rollback.
--
-- They are advisory locks by the key of `?recipe=advisory`, so that the two exclude each other. Leases are rows and know nothing
-- of them.

-- Waits for the lock, no longer than the caller's lock_timeout, and holds it until the transaction ends.
--
-- Call it in a statement of its own: a statement sees what was committed before it began, and this one begins before it waits.
CREATE FUNCTION @schema@.xact_lock(name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM @schema@.check_name('lock name', name);
    PERFORM pg_advisory_xact_lock(@schema@.lock_key(name));
    PERFORM @schema@.warn_of_old_snapshot(name);
END;
$$;

-- Takes the lock if it is free. False: somebody else has it, and the transaction goes on without.
CREATE FUNCTION @schema@.try_xact_lock(name text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM @schema@.check_name('lock name', name);
    IF NOT pg_try_advisory_xact_lock(@schema@.lock_key(name)) THEN
        RETURN false;
    END IF;
    PERFORM @schema@.warn_of_old_snapshot(name);
    RETURN true;
END;
$$;

-- Refuses what is no name. NULL would do the most harm: PostgreSQL's own functions lock nothing then, and do not say so.
CREATE FUNCTION @schema@.check_name(what text, name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF name IS NULL OR octet_length(name) NOT BETWEEN 1 AND 255
        OR name COLLATE "C" ~ E'[\\u0001-\\u001f\\u007f-\\u009f]' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('%L is no %s', left(name, 100), what),
            HINT = 'It has 1 to 255 bytes of UTF-8 without control characters.';
    END IF;
END;
$$;

-- REPEATABLE READ and SERIALIZABLE keep the snapshot of their first statement, and a statement that calls a function takes its
-- snapshot before the function runs. So no call can lock before it: even as the first statement of its transaction it waits with
-- the snapshot in its hand, and does not see what the holder before it has committed.
CREATE FUNCTION @schema@.warn_of_old_snapshot(name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        RAISE WARNING 'lock % is held, but the snapshot of this % transaction is older', name,
            upper(current_setting('transaction_isolation'))
            USING HINT = 'What the last holder committed may not be seen. Lock in a READ COMMITTED transaction.';
    END IF;
END;
$$;
