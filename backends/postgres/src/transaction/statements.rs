//! What the helpers need of a driver.

use ringfence_core::{BoxFuture, Result};

use super::failure::Failure;

/// A transaction in which statements can be carried out.
pub trait Statements: Send {
    /// The one column of text that a statement answers with. One round trip, and where the driver prepares it first, another.
    fn column(
        &mut self,
        sql: String,
        values: Vec<Value>,
    ) -> BoxFuture<'_, Result<Vec<Option<String>>, Failure>>;
}

/// What is bound to a statement.
#[derive(Clone, Debug)]
pub enum Value {
    Text(String),
    Integer(i64),
    Texts(Vec<String>),
    Integers(Vec<i64>),
}
