//! Rows of the caller's tables: locked in the server's own ways, and the form of a fence that needs a column and nothing else.

use std::fmt;

use ringfence_core::{Error, ErrorKind, FencingToken, Result};

use super::Transaction;
use super::failure::{About, Failure};
use super::statements::Value;

/// The longest identifier, in bytes. The server cuts a longer one off, and then it names something else.
const IDENTIFIER_MAX: usize = 63;

/// Rows of a table, told apart by a key.
///
/// The names are those that the server has, upper and lower case, spaces and quotes included, and not as they are written in SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Quoted, as all that is said of them in SQL.
    table: String,
    key: String,
    /// For people.
    shown: String,
}

impl Rows {
    /// The rows of `schema.table`, by their column `key`.
    ///
    /// Errors with [`ErrorKind::InvalidRequest`] for what can be no name: without a character or of more than 63 bytes, or with NUL.
    pub fn new(schema: &str, table: &str, key: &str) -> Result<Self> {
        Ok(Self {
            table: format!("{}.{}", quote(schema)?, quote(table)?),
            key: quote(key)?,
            shown: format!("{schema}.{table}"),
        })
    }

    /// An error about one row, or all of them.
    fn about(&self, key: Option<&Key>) -> impl fmt::Display {
        match key {
            Some(key) => format!("row {}/{key}", self.shown),
            None => format!("rows of {}", self.shown),
        }
    }
}

/// An identifier as SQL takes it whatever stands in it, by the rule of the server's own `quote_ident`.
fn quote(name: &str) -> Result<String> {
    if name.is_empty() || name.len() > IDENTIFIER_MAX || name.contains('\0') {
        let shown: String = name.chars().take(100).collect();
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "{shown:?} is no name of a schema, table or column: it has 1 to {IDENTIFIER_MAX} bytes without NUL"
            ),
        ));
    }
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

/// The key of a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_enums, reason = "whoever gets keys back handles every type")]
pub enum Key {
    /// Of a column that is smallint, integer or bigint.
    Integer(i64),
    /// Of a column that is text or varchar.
    Text(String),
    /// Of a column that is uuid.
    Uuid(u128),
}

impl Key {
    fn kind(&self) -> Kind {
        match self {
            Self::Integer(_) => Kind::Integer,
            Self::Text(_) => Kind::Text,
            Self::Uuid(_) => Kind::Uuid,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
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

impl From<i16> for Key {
    fn from(number: i16) -> Self {
        Self::Integer(number.into())
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

/// What the keys of one statement have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Integer,
    Text,
    Uuid,
}

impl Kind {
    /// The keys as what is bound, and what the server makes of it.
    fn bind(self, keys: &[Key]) -> (Value, &'static str) {
        let texts = || Value::Texts(keys.iter().map(ToString::to_string).collect());
        match self {
            Self::Integer => {
                let number = |key: &Key| if let Key::Integer(number) = key { *number } else { 0 };
                (Value::Integers(keys.iter().map(number).collect()), "::int8[]")
            }
            Self::Text => (texts(), "::text[]"),
            Self::Uuid => (texts(), "::text[]::uuid[]"),
        }
    }

    fn read(self, text: String) -> Result<Key> {
        let key = match self {
            Self::Integer => text.parse().ok().map(Key::Integer),
            Self::Text => return Ok(Key::Text(text)),
            Self::Uuid => u128::from_str_radix(&text.replace('-', ""), 16).ok().map(Key::Uuid),
        };
        key.ok_or_else(|| Error::new(ErrorKind::Bug, format!("{text:?} came back as a key that is {self:?}")))
    }
}

/// How rows are locked, and what happens where somebody else has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLock {
    strength: &'static str,
    where_busy: &'static str,
}

impl RowLock {
    /// `FOR UPDATE`: alone. Also against those who point to the row by a foreign key.
    pub const UPDATE: Self = Self::of("FOR UPDATE");
    /// `FOR NO KEY UPDATE`: alone, but for those who point to the row by a foreign key. What an UPDATE takes that leaves keys alone.
    pub const NO_KEY_UPDATE: Self = Self::of("FOR NO KEY UPDATE");
    /// `FOR SHARE`: with others who share it. Nobody changes the row meanwhile.
    pub const SHARE: Self = Self::of("FOR SHARE");

    const fn of(strength: &'static str) -> Self {
        Self { strength, where_busy: "" }
    }

    /// The same with `NOWAIT`: where somebody else has one of the rows, it fails at once with [`Conflict::Busy`](super::Conflict::Busy).
    #[must_use]
    pub const fn nowait(self) -> Self {
        Self { where_busy: " NOWAIT", ..self }
    }

    /// The same with `SKIP LOCKED`: rows that somebody else has are left out.
    #[must_use]
    pub const fn skip_locked(self) -> Self {
        Self { where_busy: " SKIP LOCKED", ..self }
    }
}

/// Locks the row of a key until the transaction ends. `false`: there is none, or with [`RowLock::skip_locked`] somebody else has it.
///
/// As [`lock_rows`]. One round trip.
pub async fn lock_row(
    tx: &mut impl Transaction,
    rows: &Rows,
    key: impl Into<Key>,
    how: RowLock,
) -> Result<bool> {
    Ok(!lock_rows(tx, rows, [key], how).await?.is_empty())
}

/// Locks the rows of these keys until the transaction ends, and says which it has locked. One round trip.
///
/// Rows are locked in the order of their keys, so that two who lock the same rows by this do not wait for each other. Keys without
/// a row are left out. No schema of Ringfence is needed.
///
/// In REPEATABLE READ and SERIALIZABLE a row that was changed since the snapshot fails with
/// [`Conflict::SerializationFailure`](super::Conflict::SerializationFailure), so that what is locked is what is seen.
///
/// Errors with a [`Conflict`](super::Conflict) where other transactions are in the way, with [`ErrorKind::InvalidRequest`] where table,
/// column or the keys' type do not fit, and with [`ErrorKind::Refused`] where the role has no right to the table.
pub async fn lock_rows<K: Into<Key>>(
    tx: &mut impl Transaction,
    rows: &Rows,
    keys: impl IntoIterator<Item = K>,
    how: RowLock,
) -> Result<Vec<Key>> {
    let keys: Vec<Key> = keys.into_iter().map(Into::into).collect();
    let Some(kind) = keys.first().map(Key::kind) else { return Ok(Vec::new()) };
    if keys.iter().any(|key| key.kind() != kind) {
        return Err(
            Error::new(ErrorKind::InvalidRequest, "its keys are of several types").about(rows.about(None))
        );
    }
    let (keys, cast) = kind.bind(&keys);
    let Rows { table, key, .. } = rows;
    let RowLock { strength, where_busy } = how;
    let sql = format!(
        "SELECT {key}::text FROM {table} WHERE {key} = ANY ($1{cast}) ORDER BY {key} {strength}{where_busy}"
    );
    let locked = tx.column(sql, vec![keys]).await;
    let locked = locked.map_err(|failure| failure.explain(About::Theirs).about(rows.about(None)))?;
    locked.into_iter().flatten().map(|text| kind.read(text)).collect()
}

/// Fences a row by a column of its own, where there is to be no schema of Ringfence: raises the column, a bigint, to the token's
/// sequence and locks the row until the transaction ends, or refuses.
///
/// It is `UPDATE … SET fence_token = $n WHERE id = $1 AND fence_token < $n`, and then a look at what the row has. From then on a
/// transaction that fences with a lower token is refused, and one that does not fence is not: whoever writes to the row has to fence
/// first. NULL is below every token. Two round trips.
///
/// A column of numbers knows no nonces: two holders that were given one number by a lock service that has lost its memory
/// both pass. [`fence_in`](super::fence_in) refuses the second.
///
/// Errors with [`ErrorKind::Stale`] for a token below the column, with [`ErrorKind::InvalidRequest`] where there is no such row, and as
/// [`lock_rows`].
pub async fn fence_column(
    tx: &mut impl Transaction,
    rows: &Rows,
    key: impl Into<Key>,
    column: &str,
    token: FencingToken,
) -> Result<()> {
    let key = key.into();
    let column = quote(column)?;
    let sequence = i64::try_from(token.sequence()).expect("sequences stay below 2^63");
    let (keys, cast) = key.kind().bind(std::slice::from_ref(&key));
    let Rows { table, key: key_column, .. } = rows;
    let row = format!("{key_column} = ANY ($1{cast})");
    let raise = format!(
        "UPDATE {table} SET {column} = $2 WHERE {row} AND ({column} IS NULL OR {column} < $2) RETURNING NULL::text"
    );
    let look = format!("SELECT {column}::text FROM {table} WHERE {row} FOR NO KEY UPDATE");
    let explain = |failure: Failure| failure.explain(About::Theirs).about(rows.about(Some(&key)));
    tx.column(raise, vec![keys.clone(), Value::Integer(sequence)]).await.map_err(explain)?;
    let seen = tx.column(look, vec![keys]).await.map_err(explain)?;
    let seen: Vec<i64> = seen.into_iter().flatten().filter_map(|seen| seen.parse().ok()).collect();
    let refused = |kind, why: String| Err(Error::new(kind, why).about(rows.about(Some(&key))));
    match seen.iter().max() {
        None => refused(ErrorKind::InvalidRequest, "there is no such row".to_owned()),
        Some(seen) if *seen == sequence => Ok(()),
        Some(seen) => refused(
            ErrorKind::Stale,
            format!("token {token} is stale: the row has seen {seen}; stop, and acquire the lock again"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn identifiers_are_quoted_and_never_cut_off() {
        for (name, quoted) in [
            ("orders", r#""orders""#),
            (r#"we"ird"#, r#""we""ird""#),
            (r#"";--"#, r#"""";--""#),
            ("a b\\c", r#""a b\c""#),
        ] {
            assert_eq!(quote(name).unwrap(), quoted);
        }
        for name in ["", "nul\0", &"x".repeat(64), &"ä".repeat(32)] {
            assert_eq!(quote(name).unwrap_err().kind(), ErrorKind::InvalidRequest, "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn a_key_comes_back(number in any::<i64>(), text in "\\PC{0,20}", uuid in any::<u128>()) {
            for key in [Key::Integer(number), Key::Text(text), Key::Uuid(uuid)] {
                prop_assert_eq!(key.kind().read(key.to_string()).unwrap(), key);
            }
        }
    }
}
