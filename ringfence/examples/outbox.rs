//! The rows and their message in one commit; and a relay, which sends what was committed.

use std::error::Error;
use std::sync::Arc;

use ringfence::patterns::outbox::{self, JsonLines, Message, Outbox, Relayed};
use sqlx::{Connection, PgConnection};

// Its tables are made once, by the owner of the database: ringfence outbox setup URL --grant-to app
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = "postgres://app@db.example/app";
    pay(url).await?;
    relay(url, std::future::pending()).await?;
    Ok(())
}

/// The order is paid and somebody hears of it, or neither.
pub async fn pay(url: &str) -> Result<(), Box<dyn Error>> {
    let mut connection = PgConnection::connect(url).await?;
    let mut tx = connection.begin().await?;
    sqlx::query("UPDATE orders SET state = 'paid' WHERE id = 42").execute(&mut *tx).await?;
    // Those of one key are sent in the order of their commits. Last, because others who enqueue for the key wait for the commit.
    let message = Message::new("orders", r#"{"id":42,"state":"paid"}"#)?.key("42")?;
    outbox::enqueue(&mut tx, &message).await?;
    tx.commit().await?;
    Ok(())
}

/// In as many processes as you like, here or by `ringfence outbox relay`. Each message is sent once or more often, and whoever hears it
/// knows it by its id.
pub async fn relay(url: &str, stop: impl Future<Output = ()>) -> ringfence::Result<Relayed> {
    let sink = JsonLines::new(tokio::io::stdout());
    Outbox::open(url)?.relay().run(Arc::new(sink), stop).await
}
