//! The connection on which a process hears of its turns, and whose end is the end of its leases where the URL says so; and how
//! a process looks after those of its own who wait.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use foldhash::fast::RandomState;
use ringfence_core::{Backoff, Error, ErrorKind, Lease, LeaseKey, Nonce, Result};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio_postgres::types::Type;

use super::Client;
use super::line::Line;
use crate::link::{ANSWER_PATIENCE, Heard, Link, Sql};
use crate::options::Options;
use crate::rows;

/// How often a process looks after those who wait. It is the net under a message that was lost.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The longest pause after a connection that failed, doubled after each up to the second.
const LISTEN_PAUSE: Duration = Duration::from_millis(50);
const LISTEN_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The connection on which a process hears of its turns. It is opened when there is something to hear.
#[derive(Debug)]
pub(super) struct Ears {
    wanted: Arc<Notify>,
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    line: Arc<Line>,
    /// What our process is called in the rows. Where leases end with the connection, each connection has a name of its own.
    session: watch::Sender<Session>,
    reclaims: bool,
    /// Which leases end with the connection, where they do.
    held: Mutex<HashSet<Nonce, RandomState>>,
}

#[derive(Debug)]
struct Session {
    number: i64,
    /// Whether the connection stands that is called so.
    is_heard: bool,
    /// Why it does not, as far as that is known.
    failure: Option<Error>,
}

impl Ears {
    pub(super) fn new(options: &Arc<Options>, reclaims: bool, line: Arc<Line>, runtime: &Handle) -> Self {
        let session = Session { number: new_number(), is_heard: false, failure: None };
        let shared =
            Arc::new(Shared { line, session: watch::Sender::new(session), reclaims, held: Mutex::default() });
        let (wanted, ended) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        let (hearing, telling) = (Arc::clone(&shared), Arc::clone(&ended));
        let connection = Link::new(Arc::clone(options), runtime.clone(), move |heard| match heard {
            Heard::Notification { payload, .. } => hearing.line.told(&payload),
            Heard::Ended { .. } => {
                hearing.ended();
                telling.notify_one();
            }
        });
        let listening = listen_when_wanted(connection, Arc::clone(&shared), Arc::clone(&wanted), ended);
        Self { wanted, shared, task: runtime.spawn(listening).abort_handle() }
    }

    /// There is something to hear from now on.
    pub(super) fn open(&self) {
        self.wanted.notify_one();
    }

    /// What our process is called in the rows.
    pub(super) fn session(&self) -> i64 {
        self.shared.session.borrow().number
    }

    /// Refuses to go through a pooler where leases are to end with a connection: it would be the pooler's.
    pub(super) fn refuse_poolers(&self, link: &Link) -> Result<()> {
        if self.shared.reclaims && link.session().is_some_and(|session| session.is_pooled) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "reclaim=connection cannot work through a pooler, whose connections are not ours: connect to the server \
                 itself, or leave it out",
            )
            .about(link.shown()));
        }
        Ok(())
    }

    /// Waits until the connection stands with which leases end, where they do.
    pub(super) async fn light_the_beacon(&self) -> Result<()> {
        if !self.shared.reclaims || self.shared.session.borrow().is_heard {
            return Ok(());
        }
        self.open();
        let mut changes = self.shared.session.subscribe();
        let lit = tokio::time::timeout(ANSWER_PATIENCE, changes.wait_for(|session| session.is_heard)).await;
        if matches!(lit, Ok(Ok(_))) {
            return Ok(());
        }
        let why = self.shared.session.borrow().failure.clone();
        Err(why.unwrap_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "the connection with which our leases end could not be opened in time",
            )
        }))
    }

    /// A lease that was granted, which is told of from now on if it ends with the connection. Errors if that has ended already.
    pub(super) fn keep(&self, lease: Lease, session: i64) -> Result<Lease> {
        self.open();
        if self.shared.reclaims {
            // Under the lock, so that it ends either before this look or after it.
            let mut held = self.shared.held();
            let now = self.shared.session.borrow();
            if !now.is_heard || now.number != session {
                let why = "the connection broke with which the lease ended";
                return Err(Error::new(ErrorKind::Unavailable, why).with_unknown_effect());
            }
            held.insert(lease.key.nonce);
        }
        Ok(lease)
    }

    /// These are given back.
    pub(super) fn forget(&self, leases: &[LeaseKey]) {
        if self.shared.reclaims {
            let mut held = self.shared.held();
            for lease in leases {
                held.remove(&lease.nonce);
            }
        }
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// The connection is over, and so are the leases that end with it.
    fn ended(&self) {
        let mut held = self.held();
        self.session.send_modify(|session| session.is_heard = false);
        let lost: Vec<Nonce> = held.drain().collect();
        drop(held);
        for nonce in lost {
            self.line.lost(nonce);
        }
    }

    fn held(&self) -> MutexGuard<'_, HashSet<Nonce, RandomState>> {
        self.held.lock().expect("nothing panics while it has the leases")
    }
}

fn new_number() -> i64 {
    rows::write_nonce(Nonce::random())
}

async fn listen_when_wanted(link: Arc<Link>, shared: Arc<Shared>, wanted: Arc<Notify>, ended: Arc<Notify>) {
    wanted.notified().await;
    let mut pauses = Backoff::new(LISTEN_PAUSE, LISTEN_PAUSE_MAX);
    loop {
        let number = if shared.reclaims { new_number() } else { shared.session.borrow().number };
        match listen(&link, number, shared.reclaims).await {
            Ok(true) => {
                tracing::warn!(
                    server = link.shown(),
                    "a pooler stands before the server, so that nobody can tell us of our turn: we ask every {LOOK_EVERY:?} \
                     while we wait, and learn of a lost lease when it is renewed; connect to the server itself to be told"
                );
                link.hang_up();
                return;
            }
            Ok(false) => {
                pauses = Backoff::new(LISTEN_PAUSE, LISTEN_PAUSE_MAX);
                let serial = link.session().map(|session| session.serial);
                shared.session.send_replace(Session { number, is_heard: true, failure: None });
                while serial.is_some() && link.session().map(|session| session.serial) == serial {
                    ended.notified().await;
                }
                // It may have ended before anybody knew that it stood.
                shared.ended();
            }
            Err(error) => {
                tracing::debug!(%error, "nobody can tell us of our turn");
                // It is told to whoever asks for a lease that ends with the connection, and of that nothing was sent.
                shared.session.send_modify(|session| session.failure = Some(error.without_effect()));
                tokio::time::sleep(pauses.pause()).await;
            }
        }
    }
}

/// Listens to the channel of this process, and lights its beacon. Says whether a pooler is in the way.
async fn listen(link: &Link, number: i64, lights: bool) -> Result<bool> {
    link.connect().await?;
    // A channel that is listened to would stay with whoever has the pooler's connection next.
    if link.session().is_some_and(|session| session.is_pooled) {
        return Ok(true);
    }
    link.query(&Sql::new(&format!("LISTEN ringfence_{number:x}"), &[]), &[]).await?;
    if lights {
        let sql = Sql::new("SELECT pg_catalog.pg_advisory_lock($1)", &[Type::INT8]);
        link.query(&sql, &[&number]).await?;
    }
    Ok(false)
}

impl Client {
    /// Looks after those who wait, until nobody does.
    pub(super) fn look_after_the_line(self: &Arc<Self>) {
        if self.line.begins_to_be_looked_after() {
            self.runtime.spawn(look_after(Arc::downgrade(self)));
        }
    }
}

async fn look_after(client: Weak<Client>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(client) = client.upgrade() else { return };
        let standing = client.line.standing();
        if standing.is_empty() {
            if client.line.ends_to_be_looked_after() {
                return;
            }
            continue;
        }
        let asked = client.now();
        // Both go out at once.
        let (seen, stirring) = tokio::join!(
            client.calls.seen(&client.affairs, client.ears.session()),
            client.calls.look(&client.affairs, &standing)
        );
        match seen.and(stirring) {
            Ok(stirring) => client.line.saw(&standing, asked, &stirring),
            Err(error) => tracing::debug!(%error, "nobody looks after those who wait"),
        }
    }
}
