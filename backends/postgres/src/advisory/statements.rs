//! What is said to the server.

use tokio_postgres::types::Type;

use crate::link::Sql;
use crate::schema::Schema;

/// The statements, with the name of the schema in them.
#[derive(Debug)]
pub(super) struct Statements {
    /// Begins a session by a sign, for a TTL; answers below which number its grants need no reservation.
    pub(super) begin: Sql,
    /// Whether the session lives.
    pub(super) ping: Sql,
    /// Takes a key if it is free, and answers with the number of the grant.
    pub(super) take: Sql,
    pub(super) take_shared: Sql,
    /// Frees a key that the session has; answers 1 if it had.
    pub(super) free: Sql,
    pub(super) free_shared: Sql,
    /// Frees a key, however the session has it.
    pub(super) undo: Sql,
    /// Several of these, each with its key.
    pub(super) several: Sql,
    /// Waits for a key in the server's own line.
    pub(super) wait: Sql,
    pub(super) wait_shared: Sql,
    /// Whether a session that has nothing would get a key to share: 1 if so.
    pub(super) probe_shared: Sql,
    /// Shares a key that the session has alone. What it has never stands in its own way, so that it does not wait.
    pub(super) downgrade: Sql,
    pub(super) number: Sql,
    pub(super) reserve: Sql,
    pub(super) write: Sql,
    pub(super) look: Sql,
    pub(super) evict: Sql,
    /// The process of the session of a sign, if it is there.
    pub(super) lives: Sql,
    pub(super) terminate: Sql,
}

const TAKE: &str = "CASE WHEN pg_try_advisory_lock($key) THEN @schema@.advisory_number() END";
const TAKE_SHARED: &str = "CASE WHEN pg_try_advisory_lock_shared($key) THEN @schema@.advisory_number() END";
const FREE: &str = "pg_advisory_unlock($key)::integer::bigint";
const FREE_SHARED: &str = "pg_advisory_unlock_shared($key)::integer::bigint";
const UNDO: &str = "(
    SELECT count(CASE l.mode WHEN 'ShareLock' THEN pg_advisory_unlock_shared($key) ELSE pg_advisory_unlock($key) END)
    FROM pg_locks l
    WHERE l.pid = pg_backend_pid() AND l.granted AND l.locktype = 'advisory' AND l.objsubid = 1
        AND (l.classid::bigint << 32) | l.objid::bigint = $key
)";

impl Statements {
    pub(super) fn new(schema: &Schema) -> Self {
        let sql = |text: &str, types: &[Type]| schema.sql(text, types);
        let of_key = |what: &str| sql(&format!("SELECT {}", what.replace("$key", "$1")), &[Type::INT8]);
        let each = |what: &str| what.replace("$key", "c.key");
        let several = format!(
            "SELECT CASE c.verb WHEN 0 THEN {} WHEN 1 THEN {} WHEN 2 THEN {} WHEN 3 THEN {} ELSE {} END
             FROM unnest($1, $2) AS c(verb, key)",
            each(TAKE),
            each(TAKE_SHARED),
            each(FREE),
            each(FREE_SHARED),
            each(UNDO)
        );
        Self {
            begin: sql("SELECT @schema@.advisory_begin($1, $2)", &[Type::INT8, Type::INT4]),
            ping: sql("SELECT 1", &[]),
            take: of_key(TAKE),
            take_shared: of_key(TAKE_SHARED),
            free: of_key(FREE),
            free_shared: of_key(FREE_SHARED),
            undo: of_key(UNDO),
            several: sql(&several, &[Type::INT4_ARRAY, Type::INT8_ARRAY]),
            wait: of_key("1::bigint FROM pg_advisory_lock($key)"),
            wait_shared: of_key("1::bigint FROM pg_advisory_lock_shared($key)"),
            probe_shared: of_key(
                "CASE WHEN pg_try_advisory_lock_shared($key) THEN pg_advisory_unlock_shared($key)::integer::bigint END",
            ),
            downgrade: of_key("1::bigint FROM pg_advisory_lock_shared($key), pg_advisory_unlock($key)"),
            number: sql("SELECT @schema@.advisory_number()", &[]),
            reserve: sql("SELECT @schema@.advisory_reserve($1)", &[Type::INT8]),
            write: sql(
                "SELECT 1 FROM @schema@.advisory_write($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                &[
                    Type::INT8_ARRAY,
                    Type::INT8_ARRAY,
                    Type::INT8_ARRAY,
                    Type::INT8_ARRAY,
                    Type::TEXT_ARRAY,
                    Type::INT8_ARRAY,
                    Type::BOOL_ARRAY,
                    Type::INT8_ARRAY,
                    Type::TEXT_ARRAY,
                ],
            ),
            // What a role may see of the server's sessions is that role's affair, and not the schema's owner's.
            look: sql(
                "SELECT l.*, a.application_name,
                    CASE a.state WHEN 'idle' THEN (extract(epoch FROM clock_timestamp() - a.state_change) * 1000)::bigint END
                        AS idle_ms
                 FROM @schema@.advisory_look($1) l LEFT JOIN pg_stat_activity a USING (pid)",
                &[Type::INT8_ARRAY],
            ),
            evict: sql("SELECT 1 FROM @schema@.advisory_evict($1, $2)", &[Type::INT8, Type::INT8]),
            lives: sql("SELECT @schema@.advisory_lives($1)", &[Type::INT8]),
            terminate: sql("SELECT pg_terminate_backend($1)", &[Type::INT4]),
        }
    }
}
