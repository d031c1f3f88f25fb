//! Marks in the rows that they guard.

use ringfence_core::{Error, ErrorKind, FencingToken, Result};

use crate::failure::explain;
use crate::mark::values;
use crate::names::{Key, Name, Rows};
use crate::statement::{Sql, Transaction};

/// A column, or two, in which each row of a table has the highest token that it has seen.
///
/// The first is a BIGINT and has the token's sequence, NULL before the first token. The second is a column of text and has its nonce,
/// 1 to 16 hexadecimal digits in lower case: the token `1024.7b` is the sequence 1024 and the nonce `7b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceColumn {
    rows: Rows,
    sequence: Name,
    nonce: Option<Name>,
}

impl FenceColumn {
    /// The column of sequences of these rows.
    ///
    /// Numbers know no nonces: two holders that were given one number, by a lock service that has lost its memory, both pass. See
    /// [`Self::with_nonce`].
    ///
    /// Errors with [`ErrorKind::InvalidRequest`] for what can be no name of a column.
    pub fn new(rows: Rows, sequence: &str) -> Result<Self> {
        Ok(Self { rows, sequence: Name::new(sequence)?, nonce: None })
    }

    /// With a second column, of nonces: of two holders with one number, the one that comes second is refused.
    ///
    /// Errors with [`ErrorKind::InvalidRequest`] for what can be no name of a column.
    pub fn with_nonce(self, nonce: &str) -> Result<Self> {
        Ok(Self { nonce: Some(Name::new(nonce)?), ..self })
    }

    /// Admits a token to the row of a key until the transaction ends: raises the row's mark to it and keeps the row locked, or refuses.
    ///
    /// As [`SideTable::admit`](crate::SideTable::admit) does; the lock is the row's own, so that whoever writes to it waits as well. A
    /// row has to be there: it is no fence for what is to be inserted. One round trip, and another one to refuse.
    ///
    /// From then on a transaction that admits a lower token is refused, and one that admits none is not: put `AND fence_token = …`
    /// into each write, or admit first in each transaction.
    ///
    /// Errors with [`ErrorKind::Stale`] and [`ErrorKind::TokenCollision`] as that does, with [`ErrorKind::InvalidRequest`] where there
    /// is no such row, more than one, or no such column, with a [`Conflict`](crate::Conflict) where other transactions are in the way, and
    /// as [`explain`] has them.
    pub async fn admit(
        &self,
        tx: &mut impl Transaction,
        key: impl Into<Key>,
        token: FencingToken,
    ) -> Result<()> {
        let key = key.into();
        let about =
            |error: Error| error.about(format_args!("fencing {token} into {}", self.rows.shown(&key)));
        let failed = |error| about(explain(error));
        let refused = |why: &str| Err(about(Error::new(ErrorKind::InvalidRequest, why)));
        let raise = self.raise(Sql::new(tx.dialect(), "UPDATE "), &key, token);
        match tx.execute(raise).await.map_err(failed)? {
            0 => {}
            1 => return Ok(()),
            _ => {
                return refused(
                    "several rows have this key: roll back, and name a column that tells rows apart",
                );
            }
        }
        let look = Sql::new(tx.dialect(), "SELECT ").integer(&self.sequence).text(", ");
        let look = match &self.nonce {
            Some(nonce) => look.string(nonce),
            None => look.text("NULL"),
        };
        let look = self.rows.table(look.text(" FROM ")).text(" WHERE ");
        let look = self.rows.has_key(look, &key).for_update();
        let seen = tx.marks(look).await.map_err(failed)?;
        match seen.first() {
            Some(seen) => seen.judge(token, self.nonce.is_some()).map_err(about),
            None => refused("there is no such row"),
        }
    }

    /// Raises the mark where it may be, and locks it.
    fn raise(&self, update: Sql, key: &Key, token: FencingToken) -> Sql {
        let (_, nonce) = values(token);
        let number = || values(token).0;
        let update = self.rows.table(update).text(" SET ").name(&self.sequence).text(" = ").value(number());
        let update = match &self.nonce {
            Some(column) => update.text(", ").name(column).text(" = ").value(nonce.clone()),
            None => update,
        };
        let update = self.rows.has_key(update.text(" WHERE "), key).text(" AND (").name(&self.sequence);
        let update = update.text(" IS NULL OR ").name(&self.sequence).text(" < ").value(number());
        let update = update.text(" OR (").name(&self.sequence).text(" = ").value(number());
        let update = match &self.nonce {
            Some(column) => update.text(" AND ").name(column).text(" = ").value(nonce),
            None => update,
        };
        update.text("))")
    }
}
