//! One attempt to get a lock.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, BootInstant, Contention, Effect, Error, ErrorKind, Lease, LeaseKey, Mode,
    Result, Retry, Wait,
};

use super::journal::{Waiting, Words};
use super::session::{Grip, Seized, Session, Unsettled};
use super::{Client, Holding, view};
use crate::patience::Patience;

/// How long somebody whose wait is over waits for the server to know it. After that it is told in the background.
const OVERDUE: Duration = Duration::from_secs(1);

/// How often one asks that waits while all sessions to wait in are in use.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// What is asked for.
struct Asked {
    key: i64,
    shared: bool,
    words: Arc<Words>,
}

/// What became of a wait.
enum Waited {
    Granted(Lease),
    /// Nobody wants it any more, or its time is over.
    GaveUp,
    /// There is no session to wait in.
    NoPlace,
}

pub(super) async fn acquire(client: &Arc<Client>, mut request: AcquireRequest) -> Result<Attempt> {
    let shared = match request.mode {
        Mode::Exclusive => false,
        Mode::Shared => true,
        permit @ Mode::Permit(_) => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "a {permit} is nothing that an advisory lock can be: use leases (without recipe=advisory)"
                ),
            ));
        }
    };
    let words = Arc::new(Words { name: request.name.clone(), holder: request.holder.clone() });
    let asked = Asked { key: client.keys.of(&request.name)?, shared, words };
    match request.wait {
        Wait::Until(deadline) if client.now() < deadline => {
            wait(client, &mut request, &asked, deadline).await
        }
        _ => match attempt(client, &request, &asked).await? {
            Some(lease) => Ok(Attempt::Granted(lease)),
            None => Ok(Attempt::Busy(busy(client, &asked).await?)),
        },
    }
}

/// Who is in the way. Errors where it is somebody with another name of the same key.
async fn busy(client: &Client, asked: &Asked) -> Result<Contention> {
    let seen = view::look(client, Some(asked.key)).await?;
    if let Some(other) =
        seen.iter().filter_map(|seen| seen.name.as_deref()).find(|name| *name != asked.words.name.as_str())
    {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "{:?} has the key {} as {other:?} has, which is held or waited for: rename one of them",
                asked.words.name.as_str(),
                asked.key
            ),
        )
        .about(client.affairs.shown()));
    }
    let holders = seen.iter().filter(|seen| seen.held).filter_map(view::Seen::known_holder).collect();
    Ok(Contention::new(holders, seen.iter().filter(|seen| !seen.held).count()))
}

/// Asks once. One round trip.
async fn attempt(client: &Arc<Client>, request: &AcquireRequest, asked: &Asked) -> Result<Option<Lease>> {
    let session = client.pool.main(request.ttl).await?;
    let at = client.now();
    match session.seize(asked.key, asked.shared).await {
        Seized::Free(unsettled) => match unsettled.take(asked.shared).await {
            Ok(Some(number)) => granted(client, request, asked, unsettled, number, at).map(Some),
            Ok(None) => {
                unsettled.settle(None);
                Ok(None)
            }
            Err(error) => Err(withdrawn(client, unsettled, error).await),
        },
        // The server would let it past those who wait, because the session shares already.
        Seized::Shared(sharing) => {
            let at = client.now();
            let (probe, key) = (&client.statements.probe_shared, asked.key);
            let probed = async { client.affairs.query(probe, &[&key]).await };
            let (would_get, number) = tokio::join!(probed, session.number());
            let would_get = would_get.map_err(Error::without_effect)?;
            let number = number.map_err(Error::without_effect)?;
            if would_get.first().is_none_or(|row| !matches!(row.try_get(0), Ok(Some(1_i64)))) {
                return Ok(None);
            }
            let lease = client.hold(key_of(request), holding(client, &session, asked, number, at), at)?;
            sharing.keep();
            Ok(Some(lease))
        }
        Seized::Taken => Ok(None),
    }
}

fn key_of(request: &AcquireRequest) -> LeaseKey {
    LeaseKey::new(request.name.clone(), request.nonce, request.ttl)
}

fn holding(client: &Client, session: &Arc<Session>, asked: &Asked, number: i64, at: BootInstant) -> Holding {
    Holding {
        session: Arc::clone(session),
        key: asked.key,
        shared: asked.shared,
        number,
        words: Arc::clone(&asked.words),
        since: client.now(),
        deadline: at.saturating_add(session.ttl.as_duration()),
    }
}

/// The session has the lock.
fn granted(
    client: &Client,
    request: &AcquireRequest,
    asked: &Asked,
    unsettled: Unsettled,
    number: i64,
    at: BootInstant,
) -> Result<Lease> {
    let lease = client.hold(key_of(request), holding(client, &unsettled.session, asked, number, at), at)?;
    unsettled.settle(Some(if asked.shared { Grip::Shared(1) } else { Grip::Alone }));
    Ok(lease)
}

/// Undoes an attempt that failed, and returns why it did.
async fn withdrawn(client: &Client, unsettled: Unsettled, error: Error) -> Error {
    let session = Arc::clone(&unsettled.session);
    unsettled.undo().await;
    if session.is_over() && error.effect() == Effect::Unknown {
        client.bury(&session).await;
    }
    error.without_effect()
}

/// Asks, and waits in the server's line where it is not free: in another session where one breaks, until its time is over.
async fn wait(
    client: &Arc<Client>,
    request: &mut AcquireRequest,
    asked: &Asked,
    deadline: BootInstant,
) -> Result<Attempt> {
    let mut patience = Patience::new(request.ttl);
    // Whether it asks before it stands in line; whoever stands there is before it.
    let mut asks = true;
    loop {
        let answer = async {
            if asks {
                let at = client.now();
                let lease = attempt(client, request, asked).await?;
                patience.heard(at);
                asks = false;
                if let Some(lease) = lease {
                    return Ok(Waited::Granted(lease));
                }
            }
            wait_once(client, request, asked, deadline, &mut patience).await
        };
        let pause = match answer.await {
            Ok(Waited::Granted(lease)) => return Ok(Attempt::Granted(lease)),
            Ok(Waited::GaveUp) => return Ok(Attempt::Busy(Contention::default())),
            Ok(Waited::NoPlace) => {
                asks = true;
                ASK_AGAIN
            }
            Err(error) => match patience.outlasts(&error, client.now()) {
                // A server that is away for a moment ends nobody's wait.
                Some(pause) if error.retry() == Retry::Later => {
                    tracing::debug!(%error, "one that waits has no place in the server's line for now");
                    pause
                }
                _ => return Err(error.without_effect()),
            },
        };
        tokio::select! {
            biased;
            () = &mut request.abandoned => return Ok(Attempt::Busy(Contention::default())),
            () = client.pass(deadline) => return Ok(Attempt::Busy(Contention::default())),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Waits in one session.
async fn wait_once(
    client: &Arc<Client>,
    request: &mut AcquireRequest,
    asked: &Asked,
    deadline: BootInstant,
    patience: &mut Patience,
) -> Result<Waited> {
    let session = tokio::select! {
        biased;
        () = &mut request.abandoned => return Ok(Waited::GaveUp),
        () = client.pass(deadline) => return Ok(Waited::GaveUp),
        session = client.pool.spare(request.ttl) => session?,
    };
    let Some(session) = session else { return Ok(Waited::NoPlace) };
    let Seized::Free(unsettled) = session.seize(asked.key, asked.shared).await else {
        unreachable!("a session that is spare has nothing")
    };
    let mut place = Place { client, request, unsettled: Some(unsettled) };
    let waiting = Waiting {
        sign: session.sign,
        key: asked.key,
        shared: asked.shared,
        words: Arc::clone(&asked.words),
        since: client.now(),
    };
    client.journal.waits(place.request.nonce, waiting);
    let turn = tokio::select! {
        biased;
        turn = session.wait(asked.key, asked.shared) => Some(turn),
        () = &mut place.request.abandoned => None,
        () = client.pass(deadline) => None,
    };
    // Until now it stood in the server's line.
    patience.heard(client.now());
    let Some(turn) = turn else {
        // Where the server does not say so, it is told in the background.
        let _ = tokio::time::timeout(OVERDUE, place.leave()).await;
        return Ok(Waited::GaveUp);
    };
    // It may have been asleep when its turn came. It holds if the session still lives, and counts from before it asked that.
    let at = client.now();
    let claimed = match turn {
        Ok(()) => session.number().await,
        Err(error) => Err(error),
    };
    let unsettled = place.unsettled.take().expect("it is taken once");
    match claimed {
        Ok(number) => granted(client, place.request, asked, unsettled, number, at).map(Waited::Granted),
        Err(error) => {
            client.journal.forget(place.request.nonce);
            let error = withdrawn(client, unsettled, error).await;
            session.hang_up();
            Err(error)
        }
    }
}

/// A place in the server's line. Dropped with its future, it is left in the background.
struct Place<'a> {
    client: &'a Arc<Client>,
    request: &'a mut AcquireRequest,
    unsettled: Option<Unsettled>,
}

impl Place<'_> {
    /// Leaves the line, in a task of its own: nobody has to wait for it.
    fn leave(&mut self) -> tokio::task::JoinHandle<()> {
        self.client.journal.forget(self.request.nonce);
        let unsettled = self.unsettled.take();
        let client = Arc::clone(self.client);
        self.client.runtime.spawn(async move {
            let Some(unsettled) = unsettled else { return };
            let session = Arc::clone(&unsettled.session);
            if !unsettled.clear().await {
                client.bury(&session).await;
            }
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.unsettled.is_some() {
            drop(self.leave());
        }
    }
}
