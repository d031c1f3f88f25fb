//! The transactions of `sqlx`.

use ::sqlx::postgres::PgDatabaseError;
use ::sqlx::{AssertSqlSafe, Error, Postgres, Row, Transaction};
use ringfence_core::{BoxFuture, Result};

use super::failure::{Failure, Said};
use super::statements::{Statements, Value};

impl super::Transaction for Transaction<'_, Postgres> {}

impl Statements for Transaction<'_, Postgres> {
    fn column(
        &mut self,
        sql: String,
        values: Vec<Value>,
    ) -> BoxFuture<'_, Result<Vec<Option<String>>, Failure>> {
        Box::pin(async move {
            // Only identifiers stand in it, each in quotes; values are bound.
            let mut query = ::sqlx::query(AssertSqlSafe(sql));
            for value in values {
                query = match value {
                    Value::Text(text) => query.bind(text),
                    Value::Integer(number) => query.bind(number),
                    Value::Texts(texts) => query.bind(texts),
                    Value::Integers(numbers) => query.bind(numbers),
                };
            }
            let rows = query.fetch_all(&mut **self).await.map_err(failure)?;
            rows.iter().map(|row| row.try_get(0).map_err(failure)).collect()
        })
    }
}

fn failure(error: Error) -> Failure {
    match error.as_database_error().and_then(|said| said.try_downcast_ref::<PgDatabaseError>()) {
        Some(said) => Failure::Said(Said::new(said.code(), said.message(), said.hint())),
        None => Failure::Broken(error.into()),
    }
}
