//! The sharded channels that this process listens to: one for each lock that somebody of it waits for.
//!
//! The server takes a subscription away when the slot of the channel moves, and says so unasked. The driver takes that for the
//! answer to whatever is under way on the connection, so subscriptions have connections of their own, and what counts is what
//! the server says about a channel, not which command it seems to answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use redis::{PushInfo, PushKind};
use tokio::sync::watch;

use crate::line::Line;
use crate::scripts::text;

/// For how long a channel is listened to after the last one has left: whoever comes back meanwhile need not ask for it again.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Channels {
    channels: Mutex<HashMap<String, Channel>>,
    line: Arc<Line>,
}

#[derive(Debug)]
struct Channel {
    /// The connection on which the server confirmed it.
    heard: watch::Sender<Option<u64>>,
    /// How many have joined so far.
    joins: u64,
}

/// One that listens to a channel, until it is dropped.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) channel: String,
    pub(crate) slot: u16,
    heard: watch::Receiver<Option<u64>>,
}

impl Channels {
    pub(crate) fn new(line: Arc<Line>) -> Self {
        Self { channels: Mutex::default(), line }
    }

    /// Joins those who listen to a channel, and says whether it is the first.
    pub(crate) fn join(&self, channel: String, slot: u16) -> (Listening, bool) {
        let mut channels = self.channels();
        let is_new = !channels.contains_key(&channel);
        let entry = channels
            .entry(channel.clone())
            .or_insert_with(|| Channel { heard: watch::Sender::new(None), joins: 0 });
        entry.joins += 1;
        (Listening { channel, slot, heard: entry.heard.subscribe() }, is_new)
    }

    /// Forgets a channel that nobody listens to and nobody has joined since there were so many; otherwise how many there are.
    pub(crate) fn leave(&self, channel: &str, joins: u64) -> Option<u64> {
        let mut channels = self.channels();
        let entry = channels.get(channel)?;
        if entry.heard.receiver_count() > 0 || entry.joins != joins {
            return Some(entry.joins);
        }
        channels.remove(channel);
        None
    }

    /// What came on a connection for subscriptions.
    pub(crate) fn pushed(&self, connection: u64, push: &PushInfo) {
        let channel = || push.data.first().and_then(text).unwrap_or_default();
        match push.kind {
            PushKind::SMessage => self.line.message(push),
            PushKind::SSubscribe => self.set(channel(), |_| Some(connection)),
            PushKind::SUnsubscribe => self.set(channel(), |heard| heard.filter(|on| *on != connection)),
            PushKind::Disconnection => {
                for entry in self.channels().values() {
                    entry.heard.send_if_modified(|heard| heard.take_if(|on| *on == connection).is_some());
                }
            }
            _ => {}
        }
    }

    fn set(&self, channel: &str, change: impl Fn(Option<u64>) -> Option<u64>) {
        if let Some(entry) = self.channels().get(channel) {
            entry.heard.send_if_modified(|heard| {
                let before = std::mem::replace(heard, change(*heard));
                *heard != before
            });
        }
    }

    /// Forgets that a channel was confirmed, on a connection that is no longer the one to listen on.
    pub(crate) fn doubt(&self, channel: &str, connection: u64) {
        self.set(channel, |heard| heard.filter(|on| *on != connection));
    }

    fn channels(&self) -> MutexGuard<'_, HashMap<String, Channel>> {
        self.channels.lock().expect("nothing panics while it has the channels")
    }
}

impl Listening {
    /// The connection on which the server confirmed it. Whatever changes after this is news for [`Self::changed`].
    pub(crate) fn heard(&mut self) -> Option<u64> {
        *self.heard.borrow_and_update()
    }

    /// Resolves when it is heard, or no longer.
    pub(crate) async fn changed(&mut self) {
        if self.heard.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Resolves when the server confirmed it.
    pub(crate) async fn confirmed(&mut self) {
        if self.heard.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
