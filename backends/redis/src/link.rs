//! The one connection of this process to its server: opened when it is needed, dropped when it is in doubt.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, PushInfo, PushKind, RedisError, Script, ServerErrorKind, Value};
use ringfence_core::{Error, Result};

use crate::error;
use crate::route::Route;

/// How long an answer may take. After that the connection counts as broken, because nobody can tell a server that is slow
/// from one that is gone.
pub(crate) const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

/// How many commands may wait to be written before the next caller has to wait as well.
const WRITE_QUEUE: usize = 1024;

/// The way to one server.
pub(crate) struct Link {
    route: Route,
    config: AsyncConnectionConfig,
    /// Where others tell us that our turn has come.
    channel: String,
    shown: String,
    /// Is told what comes unasked: messages of the channel, and the end of a connection.
    pushed: Arc<dyn Fn(PushInfo) + Send + Sync>,
    open: Arc<Mutex<Open>>,
    /// Held while a connection is opened, so that one is.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Open {
    connection: Option<MultiplexedConnection>,
    /// Counts the connections, so that the end of an old one does not end the one after it.
    epoch: u64,
    /// Counts the tries that led to none, with what came of the last one.
    failures: u64,
    failure: Option<Error>,
}

impl Open {
    fn discard(&mut self, epoch: u64) {
        if self.epoch == epoch {
            self.epoch += 1;
            self.connection = None;
        }
    }
}

impl Link {
    /// A way to a server. `pushed` is told what comes unasked: messages of the channel, and the end of a connection.
    pub(crate) fn new(
        route: Route,
        channel: String,
        shown: String,
        pushed: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Self {
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(Some(ANSWER_PATIENCE))
            .set_pipeline_buffer_size(WRITE_QUEUE);
        let (pushed, opening) = (Arc::new(pushed), tokio::sync::Mutex::default());
        Self { route, config, channel, shown, pushed, open: Arc::default(), opening }
    }

    /// The server, for people.
    pub(crate) fn server(&self) -> &str {
        &self.shown
    }

    /// Opens the connection if there is none. Errors without effect.
    pub(crate) async fn connect(&self) -> Result<()> {
        self.connection().await.map(drop)
    }

    /// Sends a command and waits for its answer.
    pub(crate) async fn query(&self, command: &Cmd) -> Result<Value> {
        let (answer, _) =
            self.send(command, None).await?.map_err(|error| error::of_call(error, &self.shown))?;
        Ok(answer)
    }

    /// Calls a script by its hash. A server that does not know it is told, which it forgets with its memory.
    pub(crate) async fn call(&self, script: &Script, command: &Cmd) -> Result<Value> {
        Ok(self.call_then(script, command, None).await?.0)
    }

    /// As [`Self::call`], with a command right behind that is about what this connection has just written. The error is that
    /// of the call; the second answer may be an error as well.
    pub(crate) async fn call_then(
        &self,
        script: &Script,
        command: &Cmd,
        then: Option<&Cmd>,
    ) -> Result<(Value, Option<Value>)> {
        let answers = self.send(command, then).await?;
        let Err(error) = &answers else { return answers.map_err(|error| error::of_call(error, &self.shown)) };
        if error.kind() != redis::ErrorKind::Server(ServerErrorKind::NoScript) {
            return answers.map_err(|error| error::of_call(error, &self.shown));
        }
        Box::pin(async {
            let (_, mut connection) = self.connection().await?;
            // Whatever else is wrong with it, the next call says.
            if let Err(error) = script.load_async(&mut connection).await
                && error::is_answer(&error)
            {
                return Err(error::of_connecting(error, &self.shown));
            }
            self.send(command, then).await?.map_err(|error| error::of_call(error, &self.shown))
        })
        .await
    }

    /// Sends commands and waits for their answers, or for what the server has against the first one. The outer error says that
    /// nothing was sent.
    pub(crate) async fn send(
        &self,
        command: &Cmd,
        then: Option<&Cmd>,
    ) -> Result<Result<(Value, Option<Value>), RedisError>> {
        let (epoch, mut connection) = self.connection().await?;
        let answers = match then {
            None => connection.send_packed_command(command).await.map(|answer| (answer, None)),
            Some(then) => {
                let mut both = redis::pipe();
                both.add_command(command.clone()).add_command(then.clone());
                let answers = connection.send_packed_commands(&both, 0, 2).await;
                answers.map(|answers| {
                    let mut answers = answers.into_iter();
                    (answers.next().unwrap_or(Value::Nil), answers.next())
                })
            }
        };
        // An error inside of an answer is one change's affair.
        let answers = match answers {
            Ok((Value::ServerError(error), _)) => Err(error.into()),
            answers => answers,
        };
        let is_in_doubt = match &answers {
            // A server that was demoted: the next connection may find the primary.
            Ok((Value::Array(answers), _)) => answers.iter().any(is_of_replica),
            Ok(_) => false,
            Err(error) => !error::is_answer(error) || error::is_of_replica(error),
        };
        if is_in_doubt {
            self.discard(epoch);
        }
        Ok(answers)
    }

    async fn connection(&self) -> Result<(u64, MultiplexedConnection)> {
        match self.current() {
            Some(open) => Ok(open),
            None => Box::pin(self.open()).await,
        }
    }

    async fn open(&self) -> Result<(u64, MultiplexedConnection)> {
        let failures = self.lock().failures;
        let _one_at_a_time = self.opening.lock().await;
        if let Some(open) = self.current() {
            return Ok(open);
        }
        // Whoever waited for a try that failed has its answer: one try after the other, for each of them, would take long.
        if let Open { failures: now, failure: Some(failure), .. } = &*self.lock()
            && *now > failures
        {
            return Err(failure.clone());
        }
        let epoch = self.lock().epoch;
        let config = self.config.clone().set_push_sender(self.ear(epoch));
        let opened = self.route.open(&config, &self.shown).await;
        let subscribed = match opened {
            Ok(mut connection) => connection
                .subscribe(&self.channel)
                .await
                .map(|()| connection)
                .map_err(|error| error::of_connecting(error, &self.shown)),
            Err(error) => Err(error),
        };
        let mut open = self.lock();
        match subscribed {
            Ok(connection) => {
                if open.epoch == epoch {
                    open.connection = Some(connection.clone());
                }
                Ok((epoch, connection))
            }
            Err(failure) => {
                open.failures += 1;
                open.failure = Some(failure.clone());
                Err(failure)
            }
        }
    }

    /// What hears everything that comes unasked on a connection. One that has ended is dropped at once, so that the next
    /// call does not fail on it first.
    fn ear(
        &self,
        epoch: u64,
    ) -> impl Fn(PushInfo) -> Result<(), redis::aio::SendError> + Send + Sync + 'static {
        let (open, pushed) = (Arc::clone(&self.open), Arc::clone(&self.pushed));
        move |push| {
            if push.kind == PushKind::Disconnection {
                lock(&open).discard(epoch);
            }
            pushed(push);
            Ok(())
        }
    }

    fn current(&self) -> Option<(u64, MultiplexedConnection)> {
        let open = self.lock();
        Some((open.epoch, open.connection.clone()?))
    }

    /// Drops a connection that is in doubt.
    fn discard(&self, epoch: u64) {
        self.lock().discard(epoch);
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().expect("nothing panics while it has the connection")
}

fn is_of_replica(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if error::is_of_replica(&error.clone().into()))
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("server", &self.shown).finish_non_exhaustive()
    }
}
