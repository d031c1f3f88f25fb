//! No lock: the write says which version it replaces, and whoever comes second reads again.

use std::error::Error;

use sqlx::{Connection, PgConnection};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut connection = PgConnection::connect("postgres://app@db.example/app").await?;
    loop {
        let (balance, version): (i64, i64) =
            sqlx::query_as("SELECT balance, version FROM accounts WHERE id = 42")
                .fetch_one(&mut connection)
                .await?;
        let write = "UPDATE accounts SET balance = $1, version = version + 1 WHERE id = 42 AND version = $2";
        let written = sqlx::query(write).bind(balance - 10).bind(version).execute(&mut connection).await?;
        if written.rows_affected() == 1 {
            return Ok(());
        }
    }
}
