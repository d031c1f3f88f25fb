//! The transactions of `tokio-postgres`.

use ::tokio_postgres::Transaction;
use ::tokio_postgres::types::{ToSql, Type};
use ringfence_core::{BoxFuture, Result};

use super::failure::{Failure, Said};
use super::statements::{Statements, Value};

impl super::Transaction for Transaction<'_> {}

impl Statements for Transaction<'_> {
    fn column(
        &mut self,
        sql: String,
        values: Vec<Value>,
    ) -> BoxFuture<'_, Result<Vec<Option<String>>, Failure>> {
        Box::pin(async move {
            let values: Vec<_> = values.iter().map(typed).collect();
            let rows = self.query_typed(&sql, &values).await.map_err(failure)?;
            rows.iter().map(|row| row.try_get(0).map_err(failure)).collect()
        })
    }
}

fn typed(value: &Value) -> (&(dyn ToSql + Sync), Type) {
    match value {
        Value::Text(text) => (text, Type::TEXT),
        Value::Integer(number) => (number, Type::INT8),
        Value::Texts(texts) => (texts, Type::TEXT_ARRAY),
        Value::Integers(numbers) => (numbers, Type::INT8_ARRAY),
    }
}

fn failure(error: ::tokio_postgres::Error) -> Failure {
    match error.as_db_error() {
        Some(said) => Failure::Said(Said::new(said.code().code(), said.message(), said.hint())),
        None => Failure::Broken(error.into()),
    }
}
