//! Statements, and the transactions of `sqlx` that carry them out.

use ringfence_core::BoxFuture;
use sqlx::{AssertSqlSafe, Row};

use crate::mark::Mark;
use crate::names::Name;

/// A kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// PostgreSQL.
    Postgres,
    /// MySQL and MariaDB.
    MySql,
    /// SQLite.
    Sqlite,
}

/// A transaction of the caller's: a `sqlx::Transaction` of `Postgres`, `MySql` or `Sqlite`, each with the feature of its name. A
/// savepoint, which is a transaction in one, is one as well.
///
/// Sealed: it is implemented for these.
pub trait Transaction: Statements {}

/// What is needed of a transaction.
pub trait Statements: Send {
    fn dialect(&self) -> Dialect;

    /// Carries a statement out, and says how many rows it has changed, or has found as they should be.
    fn execute(&mut self, sql: Sql) -> BoxFuture<'_, Result<u64, sqlx::Error>>;

    /// The rows of a query that answers with a number and a text.
    fn marks(&mut self, sql: Sql) -> BoxFuture<'_, Result<Vec<Mark>, sqlx::Error>>;
}

/// A statement: only names stand in its text, each in quotes; values are bound.
#[derive(Clone, Debug)]
pub struct Sql {
    dialect: Dialect,
    text: String,
    values: Vec<Value>,
}

/// What is bound to a statement.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Integer(i64),
    Text(String),
    Bytes(Vec<u8>),
}

impl Sql {
    pub(crate) fn new(dialect: Dialect, text: &str) -> Self {
        Self { dialect, text: text.to_owned(), values: Vec::new() }
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }

    pub(crate) fn text(mut self, text: &str) -> Self {
        self.text += text;
        self
    }

    pub(crate) fn name(mut self, name: &Name) -> Self {
        self.text += &name.quoted(self.dialect);
        self
    }

    pub(crate) fn value(mut self, value: Value) -> Self {
        self.values.push(value);
        match self.dialect {
            Dialect::Postgres => {
                let number = self.values.len();
                self.text(&format!("${number}"))
            }
            Dialect::MySql | Dialect::Sqlite => self.text("?"),
        }
    }

    /// A column as a number of 64 bits, however many its own have.
    pub(crate) fn integer(self, column: &Name) -> Self {
        let kind = match self.dialect {
            Dialect::Postgres => " AS bigint)",
            Dialect::MySql => " AS SIGNED)",
            Dialect::Sqlite => " AS INTEGER)",
        };
        self.text("CAST(").name(column).text(kind)
    }

    /// A column as text.
    pub(crate) fn string(self, column: &Name) -> Self {
        let kind = match self.dialect {
            Dialect::Postgres | Dialect::Sqlite => " AS TEXT)",
            Dialect::MySql => " AS CHAR)",
        };
        self.text("CAST(").name(column).text(kind)
    }

    /// What makes a query lock what it finds, and show that as it is now. In SQLite whoever has written has the database for itself.
    pub(crate) fn for_update(self) -> Self {
        match self.dialect {
            Dialect::Postgres => self.text(" FOR NO KEY UPDATE"),
            Dialect::MySql => self.text(" FOR UPDATE"),
            Dialect::Sqlite => self,
        }
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

macro_rules! transaction {
    ($feature:literal, $database:ident, $dialect:ident) => {
        #[cfg(feature = $feature)]
        const _: () = {
            use sqlx::{Database, $database};

            type Query = sqlx::query::Query<'static, $database, <$database as Database>::Arguments>;

            fn query(sql: Sql) -> Query {
                sql.values.into_iter().fold(
                    sqlx::query(AssertSqlSafe(sql.text)),
                    |query, value| match value {
                        Value::Integer(number) => query.bind(number),
                        Value::Text(text) => query.bind(text),
                        Value::Bytes(bytes) => query.bind(bytes),
                    },
                )
            }

            impl Transaction for sqlx::Transaction<'_, $database> {}

            impl Statements for sqlx::Transaction<'_, $database> {
                fn dialect(&self) -> Dialect {
                    Dialect::$dialect
                }

                fn execute(&mut self, sql: Sql) -> BoxFuture<'_, Result<u64, sqlx::Error>> {
                    Box::pin(async move { Ok(query(sql).execute(&mut **self).await?.rows_affected()) })
                }

                fn marks(&mut self, sql: Sql) -> BoxFuture<'_, Result<Vec<Mark>, sqlx::Error>> {
                    Box::pin(async move {
                        let rows = query(sql).fetch_all(&mut **self).await?;
                        let mark = |row: &<$database as Database>::Row| {
                            Ok(Mark { sequence: row.try_get(0)?, nonce: row.try_get(1)? })
                        };
                        rows.iter().map(mark).collect()
                    })
                }
            }
        };
    };
}

transaction!("postgres", Postgres, Postgres);
transaction!("mysql", MySql, MySql);
transaction!("sqlite", Sqlite, Sqlite);
