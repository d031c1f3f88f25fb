//! The statements that any lock on PostgreSQL needs, on one connection of the driver that ours uses, where several tasks share it
//! and nobody waits for the answer of another.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio_postgres::{Client, NoTls, Statement};

use crate::contender::TTL;
use crate::contender::client::{LockClient, Servers};
use crate::patterns::clients::RECEIPT;

/// Where the bare keys are, and the bare leases, with room in its pages for the next version of a row, as ours have it.
pub(super) const TABLE: &str = r#"
    CREATE TABLE bare (
        name text COLLATE "C" PRIMARY KEY, number bigint NOT NULL, nonce bigint, ends timestamptz NOT NULL, holder text
    ) WITH (fillfactor = 50);
    CREATE TABLE bare_keys (key text COLLATE "C" PRIMARY KEY, result text);
"#;

/// Takes a lease where it is free, and counts. On the disk when it is answered.
const UPSERT: &str = "
    INSERT INTO bare AS l VALUES ($1, 1, $2, clock_timestamp() + $3 * interval '1 ms', $4)
    ON CONFLICT (name) DO UPDATE
    SET number = l.number + 1, nonce = excluded.nonce, ends = excluded.ends, holder = excluded.holder
    WHERE l.nonce IS NULL OR l.ends <= clock_timestamp()
    RETURNING number
";

/// Gives it back. As ours, it does not wait for the disk: a release that a crash takes back is a lease that ends at its TTL.
const RELEASE: &str = "
    UPDATE bare SET nonce = NULL FROM (SELECT set_config('synchronous_commit', 'off', true)) AS lazily
    WHERE name = $1 AND nonce = $2
";

/// The same two for `pgbench`, each of whose clients has a name of its own.
pub(super) const LEASES_SCRIPT: &str = "
INSERT INTO bare AS l VALUES ('bench/' || :client_id, 1, :client_id, clock_timestamp() + interval '30 s', 'somebody') \
    ON CONFLICT (name) DO UPDATE \
    SET number = l.number + 1, nonce = excluded.nonce, ends = excluded.ends, holder = excluded.holder \
    WHERE l.nonce IS NULL OR l.ends <= clock_timestamp() \
    RETURNING number;
UPDATE bare SET nonce = NULL FROM (SELECT set_config('synchronous_commit', 'off', true)) AS lazily \
    WHERE name = 'bench/' || :client_id AND nonce = :client_id;
";

pub(super) const ADVISORY_SCRIPT: &str = "
SELECT pg_try_advisory_lock(:client_id);
SELECT pg_advisory_unlock(:client_id);
";

/// A lease in a row, by two statements.
#[derive(Clone)]
pub(crate) struct Leases {
    client: Arc<Client>,
    upsert: Statement,
    release: Statement,
    attempts: Arc<AtomicI64>,
    pause: Duration,
}

impl LockClient for Leases {
    type Held = (String, i64);

    async fn connect(servers: &Servers) -> Self {
        let client = connect(servers).await;
        Self {
            upsert: client.prepare(UPSERT).await.expect("a statement"),
            release: client.prepare(RELEASE).await.expect("a statement"),
            client,
            attempts: Arc::new(AtomicI64::new(i64::from(std::process::id()) << 32)),
            pause: servers.pause().unwrap_or_default(),
        }
    }

    async fn acquire(&self, name: &str) -> (String, i64) {
        let nonce = self.attempts.fetch_add(1, Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "half a minute")]
        let ttl = TTL.as_millis() as f64;
        while self
            .client
            .query(&self.upsert, &[&name, &nonce, &ttl, &"somebody"])
            .await
            .expect("an answer")
            .is_empty()
        {
            tokio::time::sleep(self.pause).await;
        }
        (name.to_owned(), nonce)
    }

    async fn release(&self, (name, nonce): (String, i64)) -> bool {
        self.client.execute(&self.release, &[&name, &nonce]).await.expect("an answer") == 1
    }
}

/// Advisory locks whose names are numbers. A session has each of its locks as often as it likes, so this is for tasks that have a lock
/// each.
#[derive(Clone)]
pub(crate) struct Advisory {
    client: Arc<Client>,
    lock: Statement,
    unlock: Statement,
}

impl LockClient for Advisory {
    type Held = i64;

    async fn connect(servers: &Servers) -> Self {
        let client = connect(servers).await;
        Self {
            lock: client.prepare("SELECT pg_try_advisory_lock($1)").await.expect("a statement"),
            unlock: client.prepare("SELECT pg_advisory_unlock($1)").await.expect("a statement"),
            client,
        }
    }

    async fn acquire(&self, name: &str) -> i64 {
        let number = name.rsplit('/').next().and_then(|number| number.parse().ok());
        let number: i64 = number.expect("a name with a number");
        let row = self.client.query_one(&self.lock, &[&number]).await.expect("an answer");
        assert!(row.get::<_, bool>(0), "somebody else has {name}");
        number
    }

    async fn release(&self, number: i64) -> bool {
        let row = self.client.query_one(&self.unlock, &[&number]).await.expect("an answer");
        row.get(0)
    }
}

/// An idempotency key as many have it: a row when a request comes, and its result in it. Nothing is behind a fence.
#[derive(Clone)]
pub(crate) struct Key {
    client: Arc<Client>,
    begin: Statement,
    complete: Statement,
    attempts: Arc<AtomicI64>,
}

impl LockClient for Key {
    type Held = String;

    async fn connect(servers: &Servers) -> Self {
        const BEGIN: &str = "INSERT INTO bare_keys (key) VALUES ($1) ON CONFLICT DO NOTHING";
        const COMPLETE: &str = "UPDATE bare_keys SET result = $2 WHERE key = $1";
        let client = connect(servers).await;
        Self {
            begin: client.prepare(BEGIN).await.expect("a statement"),
            complete: client.prepare(COMPLETE).await.expect("a statement"),
            client,
            attempts: Arc::default(),
        }
    }

    async fn acquire(&self, name: &str) -> String {
        let name = format!("{name}/{}", self.attempts.fetch_add(1, Ordering::Relaxed));
        let begun = self.client.execute(&self.begin, &[&name]).await.expect("an answer");
        assert_eq!(begun, 1, "{name} is new");
        name
    }

    async fn release(&self, name: String) -> bool {
        self.client.execute(&self.complete, &[&name, &RECEIPT]).await.expect("an answer") == 1
    }
}

/// No lock: two round trips, in the second of which something comes to the disk.
#[derive(Clone)]
pub(crate) struct RoundTrips {
    leases: Leases,
    nothing: Statement,
}

impl LockClient for RoundTrips {
    type Held = String;

    async fn connect(servers: &Servers) -> Self {
        let leases = Leases::connect(servers).await;
        Self { nothing: leases.client.prepare("SELECT 1").await.expect("a statement"), leases }
    }

    async fn acquire(&self, name: &str) -> String {
        self.leases.client.query_one(&self.nothing, &[]).await.expect("an answer");
        name.to_owned()
    }

    async fn release(&self, name: String) -> bool {
        // A lease that is over already, so that the next one is free.
        let (nonce, ttl) = (1_i64, 0_f64);
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 4] = [&name, &nonce, &ttl, &"somebody"];
        self.leases.client.query_one(&self.leases.upsert, &params).await.is_ok()
    }
}

async fn connect(servers: &Servers) -> Arc<Client> {
    let url = servers.url_of("postgres://postgres@HOSTS/postgres");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("a server");
    tokio::spawn(connection);
    Arc::new(client)
}
