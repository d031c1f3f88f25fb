//! What is said in SQL of a caller's tables: names, which are quoted, and keys, which are bound.

use std::fmt;

use ringfence_core::{Error, ErrorKind, Result};

use crate::statement::{Dialect, Sql, Value};

/// The longest name, in bytes. PostgreSQL cuts a longer one off, and then it names something else; MySQL's limit is 64 characters.
const NAME_MAX: usize = 63;

/// A name of a schema, table or column, as the database has it: upper and lower case, spaces and quotes included, and not as it
/// is written in SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(String);

impl Name {
    pub(crate) fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        if name.is_empty() || name.len() > NAME_MAX || name.contains('\0') {
            let shown: String = name.chars().take(100).collect();
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "{shown:?} is no name of a table or column: it has 1 to {NAME_MAX} bytes without NUL"
                ),
            ));
        }
        Ok(Self(name))
    }

    /// As SQL takes it, whatever stands in it. A backslash is nothing special between these quotes.
    pub(crate) fn quoted(&self, dialect: Dialect) -> String {
        let quote = match dialect {
            Dialect::Postgres => "\"",
            // SQLite takes a name in double quotes that it does not know for a text.
            Dialect::MySql | Dialect::Sqlite => "`",
        };
        format!("{quote}{}{quote}", self.0.replace(quote, &quote.repeat(2)))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Rows of a table, told apart by a key.
///
/// Names are those that the database has, upper and lower case, spaces and quotes included, and not as they are written in SQL. A key
/// has one row, as a primary key or a unique column has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    schema: Option<Name>,
    table: Name,
    key: Name,
}

impl Rows {
    /// The rows of a table, by their column `key`; where the table is, is for the database to find.
    ///
    /// Errors with [`ErrorKind::InvalidRequest`] for what can be no name: without a character or of more than 63 bytes, or with NUL.
    pub fn new(table: &str, key: &str) -> Result<Self> {
        Ok(Self { schema: None, table: Name::new(table)?, key: Name::new(key)? })
    }

    /// Those of the table in this schema, which MySQL and MariaDB call a database, and SQLite an attached one. Errors as [`Self::new`].
    pub fn in_schema(self, schema: &str) -> Result<Self> {
        Ok(Self { schema: Some(Name::new(schema)?), ..self })
    }

    /// Adds the table to a statement.
    pub(crate) fn table(&self, sql: Sql) -> Sql {
        match &self.schema {
            Some(schema) => sql.name(schema).text(".").name(&self.table),
            None => sql.name(&self.table),
        }
    }

    /// Adds the condition that a row has this key.
    pub(crate) fn has_key(&self, sql: Sql, key: &Key) -> Sql {
        let sql = sql.name(&self.key).text(" = ");
        match (key, sql.dialect()) {
            // Its parameter would be a text, which PostgreSQL does not compare with a uuid.
            (Key::Uuid(_), Dialect::Postgres) => sql.text("CAST(").value(key.value()).text(" AS uuid)"),
            _ => sql.value(key.value()),
        }
    }

    /// The row of a key, for people.
    pub(crate) fn shown(&self, key: &Key) -> String {
        let schema = self.schema.as_ref().map(|schema| format!("{schema}.")).unwrap_or_default();
        format!("row {schema}{}/{key}", self.table)
    }
}

/// The key of a row.
///
/// Take the one that the column is of: MySQL compares a text with a number by making a number of the text, so that the integer 0
/// would be the key of every row whose key is a text without digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Key {
    /// Of a column of integers.
    Integer(i64),
    /// Of a column of text.
    Text(String),
    /// Of a column of bytes: bytea, BINARY, BLOB.
    Bytes(Vec<u8>),
    /// Of a column that is uuid, or in SQLite and MySQL of text that has it in the usual way, with hyphens and in lower case.
    Uuid(u128),
}

impl Key {
    fn value(&self) -> Value {
        match self {
            Self::Integer(number) => Value::Integer(*number),
            Self::Text(text) => Value::Text(text.clone()),
            Self::Bytes(bytes) => Value::Bytes(bytes.clone()),
            Self::Uuid(_) => Value::Text(self.to_string()),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
            Self::Bytes(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Self::Uuid(uuid) => {
                let mut text = format!("{uuid:032x}");
                for at in [20, 16, 12, 8] {
                    text.insert(at, '-');
                }
                f.write_str(&text)
            }
        }
    }
}

impl From<i32> for Key {
    fn from(number: i32) -> Self {
        Self::Integer(number.into())
    }
}

impl From<i64> for Key {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&[u8]> for Key {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_never_cut_off() {
        for (name, postgres, others) in [
            ("orders", r#""orders""#, "`orders`"),
            (r#"we"ird"#, r#""we""ird""#, r#"`we"ird`"#),
            ("we`ird", r#""we`ird""#, "`we``ird`"),
            (r#"";--"#, r#"""";--""#, r#"`";--`"#),
            (r"a b\", r#""a b\""#, r"`a b\`"),
        ] {
            let name = Name::new(name).unwrap();
            assert_eq!(name.quoted(Dialect::Postgres), postgres);
            assert_eq!(name.quoted(Dialect::MySql), others);
            assert_eq!(name.quoted(Dialect::Sqlite), others);
        }
        for name in ["", "nul\0", &"x".repeat(64), &"ä".repeat(32)] {
            assert_eq!(Name::new(name).unwrap_err().kind(), ErrorKind::InvalidRequest, "{name:?}");
        }
    }

    #[test]
    fn keys_are_shown_as_people_write_them() {
        let uuid = Key::Uuid(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(uuid.to_string(), "01234567-89ab-cdef-0123-456789abcdef");
        assert_eq!(Key::from(&b"\x00\xff"[..]).to_string(), "00ff");
    }
}
