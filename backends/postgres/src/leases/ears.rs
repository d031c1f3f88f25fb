//! Where a process hears of its turns, and looks after those of its own who wait.

use std::sync::{Arc, Weak};
use std::time::Duration;

use ringfence_core::Backoff;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::Client;
use super::line::Line;
use crate::link::{Heard, Link, Sql};
use crate::options::Options;

/// How often a process looks after those who wait. It shows that it lives, and is the net under a message that was lost.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The longest pause after a connection that failed, doubled after each up to the second.
const LISTEN_PAUSE: Duration = Duration::from_millis(50);
const LISTEN_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The connection on which a process hears of its turns. It is opened when there is something to hear.
#[derive(Debug)]
pub(super) struct Ears {
    wanted: Arc<Notify>,
    task: tokio::task::AbortHandle,
}

impl Ears {
    pub(super) fn new(options: &Arc<Options>, session: i64, line: Arc<Line>, runtime: Handle) -> Self {
        let (wanted, ended) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        let telling = Arc::clone(&ended);
        let link = Link::new(Arc::clone(options), runtime.clone(), move |heard| match heard {
            Heard::Notification { payload, .. } => line.told(&payload),
            Heard::Ended { .. } => telling.notify_one(),
        });
        let listen = Sql::new(&format!("LISTEN ringfence_{session:x}"), &[]);
        let task = runtime.spawn(listen_when_wanted(link, listen, Arc::clone(&wanted), ended));
        Self { wanted, task: task.abort_handle() }
    }

    /// There is something to hear from now on.
    pub(super) fn open(&self) {
        self.wanted.notify_one();
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen_when_wanted(link: Arc<Link>, listen: Sql, wanted: Arc<Notify>, ended: Arc<Notify>) {
    wanted.notified().await;
    let mut pauses = Backoff::new(LISTEN_PAUSE, LISTEN_PAUSE_MAX);
    loop {
        let listens = async {
            link.connect().await?;
            let is_pooled = link.session().is_some_and(|session| session.is_pooled);
            // A channel that is listened to would stay with whoever has the pooler's connection next.
            if !is_pooled {
                link.query(&listen, &[]).await?;
            }
            Ok::<_, ringfence_core::Error>(is_pooled)
        };
        match listens.await {
            Ok(true) => {
                tracing::warn!(
                    server = link.shown(),
                    "a pooler stands before the server, so that nobody can tell us of our turn: we ask every {LOOK_EVERY:?} while \
                     we wait, and learn of a lost lease when it is renewed; connect to the server itself to be told"
                );
                link.hang_up();
                return;
            }
            Ok(false) => {
                pauses = Backoff::new(LISTEN_PAUSE, LISTEN_PAUSE_MAX);
                ended.notified().await;
            }
            Err(error) => {
                tracing::debug!(%error, "nobody can tell us of our turn");
                tokio::time::sleep(pauses.pause()).await;
            }
        }
    }
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
        let (seen, gone) = tokio::join!(
            client.calls.seen(&client.affairs, client.session.number),
            client.calls.look(&client.affairs, &standing)
        );
        match seen.and(gone) {
            Ok(gone) => client.line.saw(&standing, asked, &gone),
            Err(error) => tracing::debug!(%error, "nobody looks after those who wait"),
        }
    }
}
