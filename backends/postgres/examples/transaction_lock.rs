//! In a crowd: wait in line in the transaction, and let the lock end with it.

use std::error::Error;
use std::time::Duration;

use ringfence::postgres::{lock_timeout, xact_lock};
use sqlx::{Connection, PgConnection};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut connection = PgConnection::connect("postgres://app@db.example/app").await?;
    let mut tx = connection.begin().await?;
    lock_timeout(&mut tx, Duration::from_secs(5)).await?;
    // Of the schema that `ringfence setup` makes; `SELECT ringfence.xact_lock('orders/42')` from any language.
    xact_lock(&mut tx, "orders/42").await?;
    sqlx::query("UPDATE orders SET state = 'charged' WHERE id = 42 AND state = 'new'")
        .execute(&mut *tx)
        .await?;
    // The work and the end of its exclusion, in one step.
    tx.commit().await?;
    Ok(())
}
