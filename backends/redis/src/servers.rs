//! Where the locks are: on one server, or on a cluster of them.

use std::fmt;
use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Script, Value};
use ringfence_core::{BoxFuture, Coalescer, Error, ErrorKind, Result};
use tokio::runtime::Handle;

use crate::cluster::Cluster;
use crate::compare_and_delete;
use crate::error;
use crate::keys::LockKeys;
use crate::link::{Answers, Call, Link};
use crate::scripts::{self, Change, LOCK};

/// How many round trips for changes are under way at a time, and for how many changes each. While the server works on one of
/// two, the other one travels.
const FLIGHTS_MAX: usize = 2;
const BATCH_MAX: usize = 128;

/// How long replicas may take to confirm a lease. As long as they are silent the connection is, too: it is far below the
/// patience with an answer, and below every TTL that goes with replicas.
const CONFIRM_PATIENCE: Duration = Duration::from_millis(500);

pub(crate) enum Servers {
    One(Server),
    /// Changes go each for itself: two of them are seldom in one slot, and one master must not hold up another's.
    Cluster(Arc<Cluster>),
}

pub(crate) struct Server {
    link: Arc<Link>,
    replicas: Option<NonZeroU8>,
    runtime: Handle,
    changes: Coalescer<Change, Result<Answered>>,
}

/// The answer to one change.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) value: Value,
    /// Why nobody may count on a lease that it gives, where too few replicas have it.
    pub(crate) unconfirmed: Option<Error>,
}

impl Servers {
    /// One server, of whose replicas so many have to confirm a lease.
    pub(crate) fn one(link: Link, replicas: Option<NonZeroU8>, runtime: Handle) -> Self {
        let link = Arc::new(link);
        let way = Arc::clone(&link);
        let send = move |changes| -> BoxFuture<'static, _> {
            let way = Arc::clone(&way);
            Box::pin(async move { send(&way, replicas, changes).await })
        };
        let adopter = runtime.clone();
        let adopt = move |round_trip| drop(adopter.spawn(round_trip));
        let changes = Coalescer::new(FLIGHTS_MAX, BATCH_MAX, send, adopt);
        Self::One(Server { link, replicas, runtime, changes })
    }

    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// Whether a release can be cheaper if it knows what the lock holds.
    pub(crate) fn can_compare_and_delete(&self) -> bool {
        match self {
            Self::One(server) => server.link.compare_and_delete().is_some(),
            Self::Cluster(_) => false,
        }
    }

    /// For people.
    pub(crate) fn shown(&self) -> &str {
        match self {
            Self::One(server) => server.link.server(),
            Self::Cluster(cluster) => cluster.shown(),
        }
    }

    /// Opens the connection, or learns of a cluster's masters. Errors without effect.
    pub(crate) async fn connect(&self) -> Result<()> {
        match self {
            Self::One(server) => server.link.connect().await,
            Self::Cluster(cluster) => cluster.connect().await,
        }
    }

    /// Makes a change, on one server in a round trip with others that come at the same time.
    pub(crate) async fn change(&self, change: Change) -> Result<Answered> {
        match self {
            Self::One(server) => server.changes.request(change).await.unwrap_or_else(|| Err(cut_short())),
            Self::Cluster(cluster) => Box::pin(cluster.change(change)).await,
        }
    }

    /// Makes many changes, in a round trip of their own, which ends even if its caller stops waiting: a connection that does
    /// not answer is dropped by those who wait for its answer. A cluster's masters that do not answer within the patience
    /// leave theirs without an answer, so that those of the others can be told.
    pub(crate) async fn change_all(
        &self,
        mut changes: Vec<Change>,
        patience: Duration,
    ) -> Vec<Result<Answered>> {
        match self {
            Self::One(_) if changes.len() == 1 => vec![self.change(changes.swap_remove(0)).await],
            Self::One(Server { link, replicas, runtime, .. }) => {
                let (link, replicas, count) = (Arc::clone(link), *replicas, changes.len());
                let round_trip = runtime.spawn(async move { send(&link, replicas, changes).await });
                round_trip.await.unwrap_or_else(|_| vec![Err(cut_short()); count])
            }
            Self::Cluster(cluster) => cluster.change_all(changes, patience).await,
        }
    }

    /// Calls a script where the lock is.
    pub(crate) async fn call(&self, keys: &LockKeys, script: &Script, command: &Cmd) -> Result<Value> {
        let call = Call::of_script(script, command);
        let (answer, _) = match self {
            Self::One(server) => server.link.call(call).await?,
            Self::Cluster(cluster) => Box::pin(cluster.call(keys.slot()?, call)).await?,
        };
        Ok(answer)
    }

    /// Every server that has locks.
    pub(crate) async fn all(&self) -> Result<Vec<Arc<Link>>> {
        match self {
            Self::One(server) => Ok(vec![Arc::clone(&server.link)]),
            Self::Cluster(cluster) => cluster.masters().await,
        }
    }
}

fn cut_short() -> Error {
    let why = "the runtime was shut down, or a call panicked, before the server's answer was here";
    Error::new(ErrorKind::Bug, why).with_unknown_effect()
}

/// Makes changes in one round trip, and returns the answer to each.
async fn send(link: &Link, replicas: Option<NonZeroU8>, changes: Vec<Change>) -> Vec<Result<Answered>> {
    if let [change] = &*changes
        && let Some(answer) = release_alone(link, change).await
    {
        return vec![answer];
    }
    let confirm = confirmation(replicas, &changes);
    let command = scripts::call(&changes);
    let call = Call { then: confirm.as_ref(), ..Call::of_script(&LOCK, &command) };
    answered(link.call(call).await, &changes, replicas, link.server())
}

/// Gives a lock back by the server's own compare-and-delete. Several changes are cheaper in one script. `None` where the script
/// has to be asked: there is no such command or the value is not known, somebody waits, or the lease is over.
async fn release_alone(link: &Link, change: &Change) -> Option<Result<Answered>> {
    let command = link.compare_and_delete()?.call(change.lock(), change.written()?);
    match link.ask(Call::of(&command)).await {
        Ok(Ok((value @ Value::Int(1), _))) => Some(Ok(Answered { value, unconfirmed: None })),
        Ok(Err(error)) if !error::is_answer(&error) => Some(Err(error::of_call(error, link.server()))),
        Err(not_sent) => Some(Err(not_sent)),
        // Whatever the server has against it, it did nothing.
        answer => {
            if let Ok(Err(error)) = answer
                && compare_and_delete::is_out_of_reach(&error)
            {
                link.without_compare_and_delete();
            }
            None
        }
    }
}

/// What has replicas confirm changes, where somebody counts on that.
pub(crate) fn confirmation(replicas: Option<NonZeroU8>, changes: &[Change]) -> Option<Cmd> {
    let replicas = replicas.filter(|_| changes.iter().any(Change::may_grant))?;
    let mut wait = redis::cmd("WAIT");
    wait.arg(replicas.get()).arg(CONFIRM_PATIENCE.as_millis());
    Some(wait)
}

/// The answers to changes, from those to the call that made them.
pub(crate) fn answered(
    reply: Result<Answers>,
    changes: &[Change],
    replicas: Option<NonZeroU8>,
    server: &str,
) -> Vec<Result<Answered>> {
    let error = match reply {
        Ok((Value::Array(answers), confirmed)) if answers.len() == changes.len() => {
            let unconfirmed = unconfirmed(confirmed, replicas, server);
            let answer = |(answer, change)| match answer {
                Value::ServerError(error) => Err(error::of_change(error.into(), change, server)),
                value => Ok(Answered { value, unconfirmed: unconfirmed.clone() }),
            };
            return answers.into_iter().zip(changes).map(answer).collect();
        }
        Ok((odd, _)) => error::odd_reply(&odd, server),
        Err(error) => error,
    };
    vec![Err(error); changes.len()]
}

/// The error of leases that fewer replicas have than have to, where they were asked.
pub(crate) fn unconfirmed(
    confirmed: Option<Value>,
    replicas: Option<NonZeroU8>,
    server: &str,
) -> Option<Error> {
    let replicas = replicas?;
    let why = match confirmed? {
        Value::Int(confirmed) if confirmed >= i64::from(replicas.get()) => return None,
        Value::Int(confirmed) => Error::new(
            ErrorKind::Unavailable,
            format!(
                "{confirmed} of {replicas} replicas have confirmed the lease within {CONFIRM_PATIENCE:?}: see that they \
                 follow their primary, or lower replicas="
            ),
        )
        .about(server),
        Value::ServerError(error) => error::of_call(error.into(), server),
        odd => error::odd_reply(&odd, server),
    };
    Some(why.with_unknown_effect())
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Servers").field(&self.shown()).finish()
    }
}
