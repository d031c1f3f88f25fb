//! What an outbox is made of in a database, in which version, and who may do what with it.

use super::database::{Connection, Kind, Place};
use crate::{Error, ErrorKind, Result};

/// The version that this program makes and knows.
const VERSION: i64 = 1;

/// What is said where there is none.
pub(super) const MISSING: &str = "there is none in this database: have its owner run `ringfence outbox setup URL`, which can also --print what it does";

/// A role of PostgreSQL has at most so many bytes. The server would cut off what is behind, and so mean another one.
const ROLE_MAX: usize = 63;

const APP: &str = "
GRANT USAGE ON SCHEMA ringfence_outbox TO @role@;
GRANT INSERT (id, topic, key, payload) ON ringfence_outbox.messages TO @role@;
";

const RELAY: &str = "
GRANT USAGE ON SCHEMA ringfence_outbox TO @role@;
GRANT SELECT, INSERT, UPDATE, DELETE ON ringfence_outbox.messages TO @role@;
GRANT SELECT, UPDATE ON ringfence_outbox.lanes TO @role@;
GRANT SELECT ON ringfence_outbox.meta TO @role@;
";

/// Whom to let use an outbox in PostgreSQL. SQLite has no roles: there whoever may write to the file may do everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    app: Option<String>,
    relay: Option<String>,
}

impl Grants {
    /// Nobody but the owner.
    pub fn none() -> Self {
        Self::default()
    }

    /// A role that may enqueue, and nothing else.
    #[must_use]
    pub fn to_app(mut self, role: impl Into<String>) -> Self {
        self.app = Some(role.into());
        self
    }

    /// A role that may relay, look, and put dead letters back.
    #[must_use]
    pub fn to_relay(mut self, role: impl Into<String>) -> Self {
        self.relay = Some(role.into());
        self
    }

    fn statements(&self, kind: Kind) -> Result<String> {
        if kind == Kind::Sqlite && *self != Self::none() {
            let why = "SQLite has no roles to grant to: whoever may write to the file may use its outbox";
            return Err(Error::new(ErrorKind::InvalidRequest, why));
        }
        let app = self.app.iter().map(|role| (role, APP));
        let grants = app.chain(self.relay.iter().map(|role| (role, RELAY)));
        grants.map(|(role, grants)| Ok(grants.replace("@role@", &quoted(role)?))).collect()
    }
}

fn quoted(role: &str) -> Result<String> {
    if role.is_empty() || role.len() > ROLE_MAX || role.contains(char::is_control) {
        let why = format!("{role:?} is no role: it is 1 to {ROLE_MAX} bytes without control characters");
        return Err(Error::new(ErrorKind::InvalidRequest, why));
    }
    Ok(format!("\"{}\"", role.replace('"', "\"\"")))
}

fn tables(kind: Kind) -> &'static str {
    match kind {
        Kind::Postgres => include_str!("sql/postgres.sql"),
        Kind::Sqlite => include_str!("sql/sqlite.sql"),
    }
}

/// All of it, to be made by hand.
pub(super) fn script(kind: Kind, grants: &Grants) -> Result<String> {
    Ok(format!("BEGIN;\n\n{}{}\nCOMMIT;\n", tables(kind), grants.statements(kind)?))
}

/// Makes what is not there. Of several who come at the same time one does, and the others find it.
pub(super) async fn install(place: &Place, grants: &Grants) -> Result<()> {
    let kind = place.kind();
    let grants = grants.statements(kind)?;
    let mut connection = place.connect().await?;
    let begin = match kind {
        Kind::Postgres => {
            "@begin@; SELECT pg_advisory_xact_lock(hashtextextended('ringfence outbox setup', 0))"
        }
        Kind::Sqlite => "@begin@",
    };
    place.in_time(connection.script(begin)).await?;
    let script = match version(place, &mut *connection).await? {
        None => format!("{}{grants}", tables(kind)),
        Some(version) => {
            check(version)?;
            grants
        }
    };
    place.in_time(connection.script(&script)).await?;
    place.in_time(connection.script("COMMIT")).await.map_err(Error::with_unknown_effect)
}

/// Errors with [`ErrorKind::Refused`] where there is no outbox, with [`ErrorKind::Unsupported`] for one of another version.
pub(super) async fn require(place: &Place, connection: &mut dyn Connection) -> Result<()> {
    match version(place, connection).await? {
        Some(version) => check(version),
        None => Err(Error::new(ErrorKind::Refused, format!("outbox: {MISSING}"))),
    }
}

fn check(version: i64) -> Result<()> {
    if version == VERSION {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "the outbox of this database has version {version}, and this program knows version {VERSION}: use a newer program"
        ),
    ))
}

/// Looks first whether the table is there, because in PostgreSQL a transaction does not survive that it is not.
async fn version(place: &Place, connection: &mut dyn Connection) -> Result<Option<i64>> {
    let look = match place.kind() {
        Kind::Postgres => {
            "SELECT count(*) FROM pg_catalog.pg_tables WHERE schemaname = 'ringfence_outbox' AND tablename = 'meta'"
        }
        Kind::Sqlite => "SELECT count(*) FROM sqlite_master WHERE name = '@meta@'",
    };
    let is_there = place.in_time(connection.rows(look, &[])).await?;
    if super::store::integer(is_there)? == 0 {
        return Ok(None);
    }
    let version = place.in_time(connection.rows("SELECT version@integer@ FROM @meta@", &[])).await?;
    super::store::integer(version).map(Some)
}
