//! The schema in which everything of ours is kept: its name, its versions, and who may use it.

use std::fmt;

use ringfence_core::{Error, ErrorKind, Result};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::error;
use crate::link::Sql;

/// What takes the schema from each version to the next, beginning with none. A released step is never changed.
const STEPS: &[&[&str]] =
    &[&[include_str!("sql/meta.sql"), include_str!("sql/leases.sql"), include_str!("sql/records.sql")]];

/// Where the name of the schema goes.
const PLACE: &str = "@schema@";

/// The most bytes of a name: what PostgreSQL takes, less what names made from it add.
const NAME_MAX: usize = 41;

/// The name of a schema that is ours alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Schema(String);

impl Schema {
    pub(crate) const DEFAULT: &str = "ringfence";

    /// Errors with [`ErrorKind::InvalidUrl`].
    pub(crate) fn new(name: &str) -> Result<Self> {
        let is_plain = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
            && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
            && name.len() <= NAME_MAX;
        let is_taken = name.starts_with("pg_") || ["public", "information_schema"].contains(&name);
        if is_plain && !is_taken {
            return Ok(Self(name.to_owned()));
        }
        let why = if is_taken {
            "is not for us alone".to_owned()
        } else {
            format!(
                "is none: it is 1 to {NAME_MAX} lower-case letters, digits and _, and begins with no digit"
            )
        };
        Err(Error::new(
            ErrorKind::InvalidUrl,
            format!("schema={name:?} {why}; leave it out for \"{}\"", Self::DEFAULT),
        ))
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// A statement in which the schema's name goes where `@schema@` stands, and the types of its parameters. Its columns are
    /// of built-in types, or each connection asks the server about them first.
    pub(crate) fn sql(&self, text: &str, types: &[Type]) -> Sql {
        Sql::new(&self.place(text), types)
    }

    fn place(&self, text: &str) -> String {
        text.replace(PLACE, &self.to_string())
    }

    /// The version of the schema that this program needs.
    fn needed() -> i32 {
        i32::try_from(STEPS.len()).expect("versions are counted by hand")
    }

    /// What brings it from this version to the one that is needed, where it may have to be made first.
    fn steps(&self, from: i32, is_there: bool) -> String {
        let mut script = String::new();
        if !is_there {
            script += "CREATE SCHEMA @schema@;\n";
        }
        for step in STEPS.iter().skip(usize::try_from(from).unwrap_or(0)) {
            script.extend(step.iter().copied());
        }
        // What is made is everybody's to call until somebody says otherwise.
        script += "
REVOKE ALL ON SCHEMA @schema@ FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA @schema@ FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA @schema@ FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA @schema@ FROM PUBLIC;
";
        script += "INSERT INTO @schema@.meta (version) VALUES (@version@) ON CONFLICT (one) DO UPDATE SET version = @version@;\n";
        self.place(&script.replace("@version@", &Self::needed().to_string()))
    }

    /// Refuses a schema that a newer program has made.
    pub(crate) fn is_current(&self, version: i32) -> Result<bool> {
        let needed = Self::needed();
        if version > needed {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the schema {self} has version {version}, and this program knows versions up to {needed}: use a newer \
                     program, or another schema (?schema=)"
                ),
            ));
        }
        Ok(version == needed)
    }

    /// Makes it what this program needs, in one transaction. Who finds it in order changes nothing; of several who come at the
    /// same time one makes it, and the others find it.
    pub(crate) async fn install(&self, client: &mut Client) -> Result<()> {
        let transaction = client.transaction().await.map_err(|why| error::of_setup(&why))?;
        transaction.batch_execute(ONE_AT_A_TIME).await.map_err(|why| error::of_setup(&why))?;
        let row = transaction
            .query_typed_one(LOOK, &[(&self.0, Type::TEXT)])
            .await
            .map_err(|why| error::of_setup(&why))?;
        let (is_there, is_ours, is_empty): (bool, bool, bool) = (row.get(0), row.get(1), row.get(2));
        let version = match (is_ours, is_empty) {
            (true, _) => {
                let version = self.place("SELECT @schema@.version()");
                transaction.query_typed_one(&version, &[]).await.map_err(|why| error::of_setup(&why))?.get(0)
            }
            (false, true) => 0,
            (false, false) => {
                return Err(Error::new(
                    ErrorKind::Refused,
                    format!(
                        "there is a schema {self} that Ringfence has not made, with something in it: name another one with \
                         ?schema="
                    ),
                ));
            }
        };
        if !self.is_current(version)? {
            let steps = self.steps(version, is_there);
            transaction.batch_execute(&steps).await.map_err(|why| error::of_setup(&why))?;
        }
        transaction.commit().await.map_err(|why| error::of_setup(&why))
    }
}

/// Held until the end of the transaction.
const ONE_AT_A_TIME: &str =
    "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('ringfence setup', 0))";

/// Whether there is a schema of a name, whether it is ours, and whether nothing is in it.
const LOOK: &str = "
    SELECT s.oid IS NOT NULL,
        EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.pronamespace = s.oid AND p.proname = 'version'),
        NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = s.oid)
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.pronamespace = s.oid)
    FROM (SELECT pg_catalog.to_regnamespace($1)::oid) AS s(oid)";

/// As it stands in SQL. The name is such that the quotes do nothing but tell it from a keyword.
impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}
