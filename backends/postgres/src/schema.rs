//! The schema in which everything of ours is kept: its name, its versions, and who may use it.

use std::fmt;

use ringfence_core::{Error, ErrorKind, Result};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, IsolationLevel};

use crate::error;
use crate::link::Sql;

/// What takes the schema from each version to the next, beginning with none. A released step is never changed.
const STEPS: &[&[&str]] = &[
    &[
        include_str!("sql/meta.sql"),
        include_str!("sql/leases.sql"),
        include_str!("sql/attempts.sql"),
        include_str!("sql/records.sql"),
        include_str!("sql/transactions.sql"),
        include_str!("sql/fences.sql"),
        include_str!("sql/advisory.sql"),
    ],
    &[include_str!("sql/removals.sql")],
];

/// Where the name of the schema goes.
const PLACE: &str = "@schema@";

/// The most bytes of a name: what PostgreSQL takes, less what names made from it add.
const NAME_MAX: usize = 41;

/// The name of a schema that is ours alone; `ringfence` where nothing is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema(String);

impl Default for Schema {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

impl Schema {
    pub(crate) const DEFAULT: &str = "ringfence";

    /// The schema of this name, which a URL gives as `?schema=`: 1 to 41 lower-case letters, digits and `_`, beginning with no
    /// digit. Errors with [`ErrorKind::InvalidUrl`].
    pub fn new(name: &str) -> Result<Self> {
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

    pub(crate) fn place(&self, text: &str) -> String {
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
            script += "CREATE SCHEMA @schema@;\n\n";
        }
        for step in STEPS.iter().skip(usize::try_from(from).unwrap_or(0)) {
            script.extend(step.iter().copied());
        }
        script += include_str!("sql/end.sql");
        self.place(&script.replace("@version@", &Self::needed().to_string()))
    }

    /// All of it as a script for psql, with what a role needs to use it.
    pub(crate) fn script(&self, grant_to: Option<&Role>) -> String {
        let mut script = format!(
            "-- The schema {self} of Ringfence, version {}, to be made by the owner of a database:\n\
             -- psql -v ON_ERROR_STOP=1 -f this-file database\n\
             BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;\n{IN_OUR_WORDS}\n{}",
            Self::needed(),
            self.steps(0, false)
        );
        if let Some(role) = grant_to {
            script.extend(self.grants(role).map(|grant| format!("\n{grant};")));
            script.push('\n');
        }
        script + "\nCOMMIT;\n"
    }

    /// What lets a role do everything that this program does with the schema, and nothing else.
    pub(crate) fn grants(&self, role: &Role) -> [String; 2] {
        [
            format!("GRANT USAGE ON SCHEMA {self} TO {role}"),
            format!("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {self} TO {role}"),
        ]
    }

    /// Gives a role these rights. The server takes two who change the rights of one function at once for trouble of its own.
    pub(crate) fn letting_in(&self, role: &Role) -> String {
        let [usage, execute] = self.grants(role);
        format!("{ONE_AT_A_TIME}; {usage}; {execute}")
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
        // Who waited for another one to make it has to see what that one made.
        let transaction =
            client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).read_only(false);
        let transaction = transaction.start().await.map_err(|why| error::of_setup(&why))?;
        transaction.batch_execute(IN_OUR_WORDS).await.map_err(|why| error::of_setup(&why))?;
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

/// What an operator chose for other programs does not change what our scripts mean, or end the wait for one who is carrying them out.
/// That wait has an end on our side. And what an operator has done whenever something is made, by an event trigger, finds what is his.
const IN_OUR_WORDS: &str = "
SET LOCAL standard_conforming_strings = on;
SET LOCAL statement_timeout = 0;
SET LOCAL lock_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL search_path TO DEFAULT;
";

/// Whoever makes or changes a schema. Held until the end of the transaction.
const ONE_AT_A_TIME: &str =
    "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('ringfence setup', 0))";

/// Whether there is a schema of a name, whether it is ours, and whether nothing is in it.
const LOOK: &str = "
    SELECT s.oid IS NOT NULL,
        EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.pronamespace = s.oid AND p.proname = 'version'),
        NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = s.oid)
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.pronamespace = s.oid)
    FROM (SELECT pg_catalog.to_regnamespace($1)::oid) AS s(oid)";

/// A role of the server.
pub(crate) struct Role(String);

impl Role {
    /// The most bytes of a role's name. The server would cut off what is behind, and so mean another role.
    const NAME_MAX: usize = 63;

    /// Errors with [`ErrorKind::InvalidRequest`].
    pub(crate) fn new(name: &str) -> Result<Self> {
        if name.is_empty() || name.len() > Self::NAME_MAX || name.contains(char::is_control) {
            let why = format!(
                "{name:?} is no role: it is 1 to {} bytes without control characters",
                Self::NAME_MAX
            );
            return Err(Error::new(ErrorKind::InvalidRequest, why));
        }
        Ok(Self(name.to_owned()))
    }
}

/// As it stands in SQL.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

/// As it stands in SQL. The name is such that the quotes do nothing but tell it from a keyword.
impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

#[cfg(test)]
mod tests {
    use ringfence_core::{BackendUrl, Severity, SystemClock};
    use ringfence_servers::Postgres;

    use super::*;
    use crate::checks::Checks;
    use crate::link::tests::{ask, link};
    use crate::{setup, setup_script};

    fn url(text: &str) -> BackendUrl {
        BackendUrl::parse(text).unwrap()
    }

    async fn refusal(url: &str) -> Error {
        link(url).unwrap().connect().await.expect_err(url)
    }

    fn assert_error(error: &Error, kind: ErrorKind, said: &str) {
        let is_so = error.kind() == kind && error.to_string().contains(said);
        assert!(is_so, "expected {kind:?} and {said:?}: {error:?}");
    }

    #[test]
    fn a_schema_has_a_name_that_is_ours_alone() {
        for name in ["ringfence", "_", "a1_b", &"x".repeat(41)] {
            assert_eq!(Schema::new(name).unwrap().to_string(), format!("\"{name}\""));
        }
        for name in ["", "1a", "Ringfence", "a b", "a\"b", "a'b", "é", &"x".repeat(42)] {
            assert_error(&Schema::new(name).unwrap_err(), ErrorKind::InvalidUrl, "lower-case letters");
        }
        for name in ["public", "pg_catalog", "information_schema"] {
            assert_error(&Schema::new(name).unwrap_err(), ErrorKind::InvalidUrl, "not for us alone");
        }
    }

    #[test]
    fn a_role_is_quoted() {
        assert_eq!(Role::new(r#"an"n"#).unwrap().to_string(), r#""an""n""#);
        for name in ["", "a\0b", &"x".repeat(64)] {
            assert_error(&Role::new(name).err().unwrap(), ErrorKind::InvalidRequest, "is no role");
        }
    }

    #[tokio::test]
    async fn of_those_who_come_first_one_makes_it() {
        let Some(server) = Postgres::start().await else { return };
        let url = format!("{}?schema=mine", server.url());
        let links: Vec<_> = (0..8)
            .map(|_| {
                let link = link(&url).unwrap();
                tokio::spawn(async move { link.connect().await })
            })
            .collect();
        for link in links {
            link.await.unwrap().unwrap();
        }
        assert_eq!(server.psql("SELECT version FROM mine.meta").await, Schema::needed().to_string());
    }

    #[tokio::test]
    async fn an_operators_event_trigger_finds_what_is_his() {
        let Some(server) = Postgres::start().await else { return };
        server.psql("CREATE TABLE made (tag text)").await;
        let note = "BEGIN INSERT INTO made VALUES (tg_tag); END";
        server
            .psql(&format!("CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS '{note}'"))
            .await;
        server.psql("CREATE EVENT TRIGGER note ON ddl_command_end EXECUTE FUNCTION note()").await;
        link(&server.url()).unwrap().connect().await.unwrap();
        assert_eq!(server.psql("SELECT count(*) FROM made WHERE tag = 'CREATE SCHEMA'").await, "1");
    }

    #[tokio::test]
    async fn a_schema_of_another_program_is_left_alone() {
        let Some(server) = Postgres::start().await else { return };
        link(&server.url()).unwrap().connect().await.unwrap();
        server.psql("UPDATE ringfence.meta SET version = version + 1").await;
        assert_error(&refusal(&server.url()).await, ErrorKind::Unsupported, "use a newer program");
        server.psql("CREATE SCHEMA theirs CREATE TABLE orders ()").await;
        let theirs = format!("{}?schema=theirs", server.url());
        assert_error(&refusal(&theirs).await, ErrorKind::Refused, "Ringfence has not made");
        assert_eq!(server.psql("SELECT count(*) FROM theirs.orders").await, "0");
        // An empty one is as good as none.
        server.psql("CREATE SCHEMA empty").await;
        link(&format!("{}?schema=empty", server.url())).unwrap().connect().await.unwrap();
    }

    #[tokio::test]
    async fn a_role_needs_what_it_is_given_and_is_told_what_it_lacks() {
        let Some(server) = Postgres::start().await else { return };
        server.psql("CREATE ROLE \"an\"\"n\" LOGIN").await;
        let ann = server.url_of("an%22n");
        assert_error(&refusal(&ann).await, ErrorKind::Refused, "`ringfence setup URL --grant-to ROLE`");
        assert_eq!(setup(&url(&server.url()), None).await.unwrap(), "ringfence");
        let usage = r#"GRANT USAGE ON SCHEMA "ringfence" TO "an""n""#;
        assert_error(&refusal(&ann).await, ErrorKind::Refused, usage);
        server.psql(usage).await;
        let execute = r#"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA "ringfence" TO "an""n""#;
        assert_error(&refusal(&ann).await, ErrorKind::Refused, execute);
        setup(&url(&server.url()), Some("an\"n")).await.unwrap();
        let link = link(&ann).unwrap();
        assert_eq!(
            ask(&link, "SELECT ringfence.version()::text").await.unwrap(),
            Schema::needed().to_string()
        );
        let error = ask(&link, "SELECT version::text FROM ringfence.meta").await.unwrap_err();
        assert_error(&error, ErrorKind::Refused, "42501 permission denied for table meta");
        // A right that is taken away while we are connected.
        server.psql(r#"REVOKE EXECUTE ON FUNCTION ringfence.floor() FROM "an""n""#).await;
        let error = ask(&link, "SELECT ringfence.floor()::text").await.unwrap_err();
        assert_error(&error, ErrorKind::Refused, "GRANT EXECUTE ON ALL FUNCTIONS");
        let error = setup(&url(&server.url()), Some("bob")).await.unwrap_err();
        assert_error(&error, ErrorKind::InvalidRequest, r#"role "bob" does not exist"#);
    }

    /// As those do who set up a database from every host that starts.
    #[tokio::test]
    async fn several_let_a_role_in_at_a_time() {
        let Some(server) = Postgres::start().await else { return };
        server.psql("CREATE ROLE ann LOGIN").await;
        let setups: Vec<_> = (0..8)
            .map(|_| {
                let url = url(&server.url());
                tokio::spawn(async move { setup(&url, Some("ann")).await })
            })
            .collect();
        for one in setups {
            one.await.unwrap().unwrap();
        }
        link(&server.url_of("ann")).unwrap().connect().await.unwrap();
    }

    #[tokio::test]
    async fn the_script_makes_what_setup_makes() {
        let Some(server) = Postgres::start().await else { return };
        server.psql("CREATE ROLE ann LOGIN").await;
        let script = setup_script(&url(&server.url()), Some("ann")).unwrap();
        server.psql(&script).await;
        link(&server.url_of("ann")).unwrap().connect().await.unwrap();
        setup(&url(&format!("{}?schema=other", server.url())), Some("ann")).await.unwrap();
        let made =
            "SELECT p.proname, p.proacl FROM pg_proc p WHERE pronamespace = '@'::regnamespace ORDER BY 1";
        let [ours, other] = ["ringfence", "other"].map(|schema| made.replace('@', schema));
        assert_eq!(server.psql(&ours).await, server.psql(&other).await);
    }

    /// What holds of every function, whoever adds it: nobody but those who were let in can call it, and nobody can have it call
    /// something else by a name of his own.
    #[tokio::test]
    async fn functions_are_closed_and_find_only_what_the_system_has() {
        let Some(server) = Postgres::start().await else { return };
        setup(&url(&server.url()), None).await.unwrap();
        let open =
            // One that pins no path names all that it uses with its schema; without the owner's rights none can do anything.
            "SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'ringfence'::regnamespace AND (
            p.prosecdef AND p.proname <> 'advisory_number'
                AND NOT 'search_path=pg_catalog, pg_temp' = ANY (coalesce(p.proconfig, '{}'))
            OR EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) WHERE grantee = 0))";
        assert_eq!(server.psql(open).await, "");
        let readable = "SELECT c.oid::regclass FROM pg_class c, aclexplode(c.relacl)
            WHERE c.relnamespace = 'ringfence'::regnamespace AND grantee = 0";
        assert_eq!(server.psql(readable).await, "");
    }

    #[tokio::test]
    async fn a_schema_that_is_gone_is_missed_and_made_anew() {
        let Some(server) = Postgres::start().await else { return };
        let link = link(&server.url()).unwrap();
        let version = "SELECT ringfence.version()::text";
        assert_eq!(ask(&link, version).await.unwrap(), Schema::needed().to_string());
        server.psql("DROP SCHEMA ringfence CASCADE").await;
        let error = ask(&link, version).await.unwrap_err();
        assert_error(&error, ErrorKind::Corrupt, "something of our schema is gone");
        assert_eq!(ask(&link, version).await.unwrap(), Schema::needed().to_string());
    }

    #[tokio::test]
    async fn a_schema_of_an_older_program_is_brought_up_to_date_and_keeps_what_is_in_it() {
        let Some(server) = Postgres::start().await else { return };
        let first = Schema::default().place(&STEPS[0].concat());
        server
            .psql(&format!(
                "CREATE SCHEMA ringfence; {first}; INSERT INTO ringfence.meta (version) VALUES (1)"
            ))
            .await;
        server.psql("INSERT INTO ringfence.forgotten VALUES (7)").await;
        let link = link(&server.url()).unwrap();
        link.connect().await.unwrap();
        assert_eq!(server.psql("SELECT version FROM ringfence.meta").await, Schema::needed().to_string());
        assert_eq!(
            server.psql("SELECT count(*) FROM ringfence.list_records(true, '', '', NULL, 1)").await,
            "0"
        );
        assert_eq!(server.psql("SELECT max(number) FROM ringfence.forgotten").await, "7");
    }

    /// Who was let in to an older schema is not let in to what an upgrade brings, and the doctor names it.
    #[tokio::test]
    async fn what_an_upgrade_brought_is_named_to_a_role_that_was_not_let_in_again() {
        let Some(server) = Postgres::start().await else { return };
        let (schema, ann) = (Schema::default(), Role::new("ann").unwrap());
        let first = schema.place(&STEPS[0].concat());
        let grants = schema.grants(&ann).join("; ");
        server.psql("CREATE ROLE ann LOGIN").await;
        let end = schema.place(&include_str!("sql/end.sql").replace("@version@", "1"));
        server.psql(&format!("CREATE SCHEMA ringfence; {first}; {end}; {grants}")).await;
        link(&server.url()).unwrap().connect().await.unwrap();

        let link = link(&server.url_of("ann")).unwrap();
        let rights = async || {
            let findings = Checks::default().examine(&link, &SystemClock::new()).await.unwrap();
            findings.into_iter().find(|finding| finding.about == "rights").unwrap()
        };
        let lacks = rights().await;
        assert_eq!(lacks.severity, Severity::Problem, "{lacks:?}");
        let names = ["list_records(", "remove_record("];
        assert!(names.iter().all(|name| lacks.what.contains(&format!("ringfence.{name}"))), "{lacks:?}");
        assert!(!lacks.what.contains("ringfence.floor("), "what it was let in to before: {lacks:?}");
        assert!(lacks.advice.as_ref().unwrap().contains("setup URL --grant-to ann"), "{lacks:?}");
        setup(&url(&server.url()), Some("ann")).await.unwrap();
        let mended = rights().await;
        assert_eq!(mended.severity, Severity::Fine, "{mended:?}");
    }

    #[tokio::test]
    async fn the_floor_rises_with_every_promotion() {
        let Some(mut server) = Postgres::start().await else { return };
        setup(&url(&server.url()), None).await.unwrap();
        let floor = "SELECT ringfence.floor()";
        assert_eq!(server.psql(floor).await, (1_u64 << 40).to_string());
        let standby = server.standby().await;
        server.kill();
        standby.promote().await;
        assert_eq!(standby.psql(floor).await, (2_u64 << 40).to_string());
    }
}
