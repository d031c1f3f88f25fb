//! A transactional outbox: what a transaction has to tell others is committed with it, and sent afterwards.
//!
//! Who changes a row and then posts a message may die in between, and who posts first may have to roll back. So the message is written
//! into a table of the same database, in the same transaction, and a *relay* sends it: at least once, in order per key, to a *sink*.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let file = folder.path().join("app.db");
//! # use sqlx::Connection;
//! # let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file).create_if_missing(true);
//! # let mut connection = sqlx::SqliteConnection::connect_with(&options).await?;
//! # sqlx::query("CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT)").execute(&mut connection).await?;
//! use std::sync::Arc;
//! use ringfence::patterns::outbox::{self, Grants, JsonLines, Message, Outbox};
//!
//! let outbox = Outbox::open(&format!("sqlite:{}", file.display()))?;          // or postgres://user@host/database
//! outbox.setup(&Grants::none()).await?;                                      // once, by the owner of the database
//!
//! let mut tx = connection.begin().await?;
//! sqlx::query("INSERT INTO orders VALUES (42, 'paid')").execute(&mut *tx).await?;
//! let message = Message::new("orders", r#"{"id":42,"state":"paid"}"#)?.key("42")?;
//! let id = outbox::enqueue(&mut tx, &message).await?;
//! tx.commit().await?;                                                        // the order and the message, or neither
//!
//! let (out, sent) = tokio::io::duplex(1000);                                 // tokio::io::stdout(), a Webhook, RedisStreams …
//! let first_line = async {
//!     use tokio::io::AsyncBufReadExt;
//!     let mut lines = tokio::io::BufReader::new(sent).lines();
//!     let line = lines.next_line().await.ok().flatten().unwrap_or_default();
//!     assert!(line.contains(&id.to_string()), "{line}");
//! };
//! let relayed = outbox.relay().run(Arc::new(JsonLines::new(out)), first_line).await?;
//! assert_eq!(relayed.delivered, 1);
//! # Ok(()) }
//! ```
//!
//! # From any language
//! A message is a row. In PostgreSQL its payload is bytes, which `convert_to` makes of a text; without that a backslash in the text has a
//! meaning of its own. In SQLite the table is `ringfence_outbox_messages`, and a text is taken as it is.
//!
//! ```sql
//! INSERT INTO ringfence_outbox.messages (topic, key, payload)
//!     VALUES ('orders', '42', convert_to('{"id":42,"state":"paid"}', 'UTF8'));
//! ```
//!
//! # What is promised
//! - A message of a transaction that is rolled back is never sent; one of a transaction that is committed is never lost, as long as the
//!   database keeps what it has committed. It is deleted when a sink has taken it, and never before.
//! - *Order.* The messages of one key have numbers that rise in the order in which their transactions were committed, and the next one
//!   is never sent before the one before it was taken or is dead. In PostgreSQL that costs a lock, from the first message of a key to the
//!   end of its transaction: another transaction that enqueues for the same key waits. So enqueue last, and several keys in one order;
//!   where two wait for each other the server fails one of them. A message without a key has no order and no lock.
//! - *Duplicates.* A relay that is killed, or whose answer is lost, leaves a batch of which nobody knows what was sent: it is sent again.
//!   A message that may have come before says so ([`Delivery::attempt`]), and has the id and the number that it had. The numbers of a key
//!   rise as they are sent: who keeps the highest that he has dealt with, and drops what is not above it, deals with each once.
//! - *A relay that was paused* past its claim sends nothing more under it, and what it says of its batch is refused, because the row of
//!   its lane has another token by then. What was on its way while it slept may arrive late: an old message behind newer ones, with its
//!   old number. Nobody but the receiver can tell, by that number.
//!   One that is paused, or cut off, in the middle of a transaction of its own keeps its lane from others until PostgreSQL ends its session,
//!   five seconds later; in SQLite it keeps everybody from writing for as long as it is paused.
//! - *Dead letters.* A message that a sink has refused twelve times (`Relay::refusals`) is set aside, and the next of its key is sent. When
//!   it is [put back](Outbox::retry) it stands at the end of its key's line, under its id and with a new number. A relay that never
//!   gives up keeps the order without that, and its key waits.

mod database;
mod message;
mod relay;
mod schema;
mod sinks;
mod store;

pub use self::message::{Delivery, Message, MessageId, PAYLOAD_MAX, TOPIC_MAX};
pub use self::relay::{Relay, Relayed};
pub use self::schema::Grants;
#[cfg(feature = "outbox-redis")]
pub use self::sinks::RedisStreams;
pub use self::sinks::{JsonLines, Sink, Webhook};
pub use self::store::{AtWork, Status, Troubled, Which};

use self::database::{Connection, Place, Value, Whom};
use crate::Result;

/// A transaction of the caller's, of `sqlx`, on PostgreSQL or SQLite. Sealed.
pub trait Transaction: Within {}

/// What is needed of a transaction.
pub trait Within: Send {
    /// The connection that it is on.
    fn connection(&mut self) -> &mut dyn Connection;
}

impl Transaction for sqlx::Transaction<'_, sqlx::Postgres> {}
impl Transaction for sqlx::Transaction<'_, sqlx::Sqlite> {}

impl Within for sqlx::Transaction<'_, sqlx::Postgres> {
    fn connection(&mut self) -> &mut dyn Connection {
        &mut **self
    }
}

impl Within for sqlx::Transaction<'_, sqlx::Sqlite> {
    fn connection(&mut self) -> &mut dyn Connection {
        &mut **self
    }
}

/// Writes a message into the outbox of the transaction's database. It is sent when the transaction is committed, and at no other time.
/// One round trip, and another where the driver prepares it first.
///
/// It needs a right to INSERT and nothing else. In PostgreSQL it waits for other transactions that have enqueued for the same key, and in
/// SQLite for whoever writes.
///
/// Errors with [`ErrorKind::Refused`](crate::ErrorKind::Refused) where there is no outbox or the right is missing, with
/// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) where other transactions are in the way or the connection broke, and with
/// [`ErrorKind::InvalidRequest`](crate::ErrorKind::InvalidRequest) in a transaction that has failed or cannot write. In PostgreSQL the
/// transaction has failed then: roll it back.
///
/// # Cancel safety
/// Dropped, the message may be in the transaction or not: roll it back.
pub async fn enqueue(tx: &mut impl Transaction, message: &Message) -> Result<MessageId> {
    let id = MessageId::random()?;
    let values = [
        Value::Text(id.to_string()),
        Value::Text(message.topic.clone()),
        message.key.clone().into(),
        Value::Bytes(message.payload.clone()),
    ];
    let insert = "INSERT INTO @messages@ (id, topic, key, payload) VALUES (@new_id@, $2, $3, $4)";
    let connection = tx.connection();
    let kind = connection.kind();
    connection.change(insert, &values).await.map_err(|why| kind.explain(why, Whom::App))?;
    Ok(id)
}

/// The outbox of a database, for whoever sets it up, relays it or looks after it. It holds no connection.
#[derive(Clone, Debug)]
pub struct Outbox {
    place: Place,
}

impl Outbox {
    /// The outbox of the database of this URL: `postgres://user@host/database`, with the parameters `application_name`, `host`, `port`,
    /// `sslmode`, `sslrootcert`, `sslcert` and `sslkey` of libpq, or `sqlite:/some/file.db`. It connects to nothing.
    ///
    /// Errors with [`ErrorKind::InvalidUrl`](crate::ErrorKind::InvalidUrl).
    pub fn open(url: &str) -> Result<Self> {
        Ok(Self { place: Place::parse(url)? })
    }

    /// Makes the tables, as the owner of the database, and lets roles use them. What is there stays as it is.
    ///
    /// Errors with [`ErrorKind::Refused`](crate::ErrorKind::Refused) where that may not be done or there is no such role, with
    /// [`ErrorKind::InvalidRequest`](crate::ErrorKind::InvalidRequest) for what is no role, and for any in SQLite, which has none, and
    /// with [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) where another version has made them.
    ///
    /// # Cancel safety
    /// Dropped, it is done or not, as a whole. Calling it again does nothing twice.
    pub async fn setup(&self, grants: &Grants) -> Result<()> {
        schema::install(&self.place, grants).await
    }

    /// What [`Self::setup`] does where there is nothing yet, as a script for `psql` or `sqlite3`. Errors as it does for what is no role.
    pub fn setup_script(&self, grants: &Grants) -> Result<String> {
        schema::script(self.place.kind(), grants)
    }

    /// What is in it. It counts every message: the more there are, the longer it takes.
    ///
    /// Errors as [`Relay::run`] does where it cannot begin.
    ///
    /// # Cancel safety
    /// It changes nothing.
    pub async fn status(&self) -> Result<Status> {
        let mut connection = self.connect().await?;
        store::status(&self.place, &mut *connection).await
    }

    /// Puts dead letters back, in their order, at the end of their keys' lines: each has its id, a new number, and no refusals. Returns how
    /// many there were.
    ///
    /// Errors as [`Relay::run`] does where it cannot begin.
    ///
    /// # Cancel safety
    /// Dropped, all are put back or none.
    pub async fn retry(&self, which: &Which) -> Result<u64> {
        let mut connection = self.connect().await?;
        store::retry(&self.place, &mut *connection, which).await
    }

    async fn connect(&self) -> Result<Box<dyn Connection>> {
        let mut connection = self.place.connect().await?;
        schema::require(&self.place, &mut *connection).await?;
        Ok(connection)
    }
}
