//! The records beside the locks: one statement checks the mark and the life of the lease, and opens, writes or removes.

use std::sync::Arc;

use bytes::Bytes;
use ringfence_core::table::Refusal;
use ringfence_core::{
    BoxFuture, FencedStore, FencingToken, ListQuery, LockName, Opened, Page, Record, RecordKey, Result,
    Version,
};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::error;
use crate::link::{Link, Sql};
use crate::rows;
use crate::schema::Schema;

/// The records of one recipe.
#[derive(Debug)]
pub(crate) struct Records {
    link: Arc<Link>,
    /// Whether the token's lease has to live.
    live: bool,
    change: Sql,
    remove: Sql,
    list: Sql,
    read: Sql,
}

/// What is done to a record behind its fence.
enum Step<'a> {
    Open,
    Write(&'a [u8]),
    Remove,
}

/// What a row says.
struct Found {
    verdict: u8,
    value: Option<Vec<u8>>,
    version: Option<i64>,
    /// The token that wrote the record, or the one that is in the way.
    token: Option<FencingToken>,
}

impl Records {
    /// On this connection. `live`: tokens are those of leases that live in the same database.
    pub(crate) fn new(link: Arc<Link>, schema: &Schema, live: bool) -> Self {
        let columns = "verdict, value, version, other, other_nonce";
        let change = schema.sql(
            &format!("SELECT {columns} FROM @schema@.fenced($1, $2, $3, $4, $5, $6)"),
            &[Type::BOOL, Type::TEXT, Type::TEXT, Type::INT8, Type::INT8, Type::BYTEA],
        );
        let read = schema.sql(
            &format!("SELECT {columns} FROM @schema@.recorded($1, $2, $3)"),
            &[Type::BOOL, Type::TEXT, Type::TEXT],
        );
        let remove = schema.sql(
            &format!("SELECT {columns} FROM @schema@.remove_record($1, $2, $3, $4, $5)"),
            &[Type::BOOL, Type::TEXT, Type::TEXT, Type::INT8, Type::INT8],
        );
        let list = schema.sql(
            "SELECT name, field FROM @schema@.list_records($1, $2, $3, $4, $5)",
            &[Type::BOOL, Type::TEXT, Type::TEXT, Type::TEXT, Type::INT4],
        );
        Self { link, live, change, remove, list, read }
    }

    /// Takes one step behind the fence.
    async fn change(&self, key: &RecordKey, token: FencingToken, step: Step<'_>) -> Result<Found> {
        let (lock, field) = (key.lock().as_str(), key.field());
        let (sequence, nonce) = (token.sequence().cast_signed(), rows::write_nonce(token.nonce()));
        let bytes = if let Step::Write(bytes) = step { Some(bytes) } else { None };
        let asked = match step {
            Step::Remove => {
                self.link.query(&self.remove, &[&self.live, &lock, &field, &sequence, &nonce]).await
            }
            _ => self.link.query(&self.change, &[&self.live, &lock, &field, &sequence, &nonce, &bytes]).await,
        };
        let rows = asked.map_err(|error| error.about(format_args!("record {key}")))?;
        let found = self.found(&rows)?.ok_or_else(|| error::odd_answer(self.link.shown()))?;
        let other = || found.token.ok_or_else(|| error::odd_answer(self.link.shown()));
        let refusal = match found.verdict {
            b'o' => return Ok(found),
            b'c' => Refusal::Collision(other()?),
            b'b' => Refusal::BelowMark(other()?),
            b'l' => Refusal::LeaseOver(found.token),
            b'n' => Refusal::NotOpened,
            _ => return Err(error::odd_answer(self.link.shown())),
        };
        Err(refusal.into_error(key, token))
    }

    fn found(&self, rows: &[Row]) -> Result<Option<Found>> {
        let found = |row: &Row| -> Result<Found, tokio_postgres::Error> {
            let token = row.try_get::<_, Option<i64>>(3)?.zip(row.try_get(4)?).and_then(
                |(sequence, nonce): (_, i64)| {
                    FencingToken::new(sequence.cast_unsigned(), rows::read_nonce(nonce)?).ok()
                },
            );
            let verdict: i8 = row.try_get(0)?;
            Ok(Found {
                verdict: verdict.cast_unsigned(),
                value: row.try_get(1)?,
                version: row.try_get(2)?,
                token,
            })
        };
        rows.first().map(found).transpose().map_err(|_| error::odd_answer(self.link.shown()))
    }

    fn record(&self, found: Found) -> Result<Option<Record>> {
        let odd = || error::odd_answer(self.link.shown());
        let Some(value) = found.value else { return Ok(None) };
        let by = found.token.ok_or_else(odd)?;
        Ok(Some(Record::new(value.into(), version(found.version).ok_or_else(odd)?, by)))
    }
}

fn version(number: Option<i64>) -> Option<Version> {
    number.and_then(|number| u64::try_from(number).ok()).map(Version)
}

/// One round trip each.
impl FencedStore for Records {
    fn open<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<Opened>> {
        Box::pin(async move { Ok(Opened::new(self.record(self.change(key, token, Step::Open).await?)?)) })
    }

    fn write<'a>(
        &'a self,
        key: &'a RecordKey,
        token: FencingToken,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Version>> {
        Box::pin(async move {
            Refusal::of_size(&value).map_err(|refusal| refusal.into_error(key, token))?;
            let found = self.change(key, token, Step::Write(&value)).await?;
            version(found.version).ok_or_else(|| error::odd_answer(self.link.shown()))
        })
    }

    fn remove<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.change(key, token, Step::Remove).await.map(drop) })
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<RecordKey>>> {
        Box::pin(async move {
            let after = query.after.as_ref().map(LockName::as_str);
            let from = after.unwrap_or_default().max(&query.prefix);
            // One more than there is room for says whether there is another page.
            let most = i32::try_from(query.page_size() + 1).expect("PAGE_MAX is small");
            let rows =
                self.link.query(&self.list, &[&self.live, &from, &query.prefix, &after, &most]).await?;
            let record = |row: &Row| {
                RecordKey::new(row.try_get::<_, &str>(0).ok()?.parse().ok()?, row.try_get::<_, &str>(1).ok()?)
                    .ok()
            };
            let records: Option<Vec<_>> = rows.iter().map(record).collect();
            Ok(Page::of_records(&query, records.ok_or_else(|| error::odd_answer(self.link.shown()))?))
        })
    }

    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>> {
        Box::pin(async move {
            let asked = self.link.query(&self.read, &[&self.live, &key.lock().as_str(), &key.field()]).await;
            let rows = asked.map_err(|error| error.without_effect().about(format_args!("record {key}")))?;
            self.found(&rows)?.map_or(Ok(None), |found| self.record(found))
        })
    }
}
