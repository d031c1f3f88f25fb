//! The one connection of this process to a server: opened when it is needed, dropped when it is in doubt.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, PushInfo, PushKind, RedisError, Script, ServerErrorKind, Value};
use ringfence_core::Result;
use tokio::task::JoinSet;

use crate::compare_and_delete::CompareAndDelete;
use crate::error;
use crate::route::{Opened, Route};
use crate::tries::Tries;

/// How long an answer may take. After that the connection counts as broken, because nobody can tell a server that is slow
/// from one that is gone.
pub(crate) const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

/// How many commands may wait to be written before the next caller has to wait as well.
const WRITE_QUEUE: usize = 1024;

/// Is told what comes unasked on a connection, and on which one.
type Pushed = dyn Fn(u64, PushInfo) + Send + Sync;

/// A command, and what has to stand beside it on the connection.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) command: &'a Cmd,
    /// The script that it calls by its hash. A server that does not know it is told, which it forgets with its memory.
    pub(crate) script: Option<&'a Script>,
    /// Right behind it, a command that is about what this connection has just written.
    pub(crate) then: Option<&'a Cmd>,
    /// Right before it, the word to a node of a cluster that it is to answer for a slot that it has not got yet.
    pub(crate) asking: bool,
}

/// The answer to a call, and to the command behind it.
pub(crate) type Answers = (Value, Option<Value>);

impl<'a> Call<'a> {
    pub(crate) fn of(command: &'a Cmd) -> Self {
        Self { command, script: None, then: None, asking: false }
    }

    pub(crate) fn of_script(script: &'a Script, command: &'a Cmd) -> Self {
        Self { script: Some(script), ..Self::of(command) }
    }
}

/// The way to one server.
pub(crate) struct Link {
    route: Route,
    config: AsyncConnectionConfig,
    /// Where others tell us that our turn has come, if they tell us there.
    channel: Option<String>,
    shown: String,
    pushed: Arc<Pushed>,
    open: Arc<Mutex<Open>>,
    /// To open a connection.
    tries: Tries,
}

struct Open {
    connection: Option<MultiplexedConnection>,
    /// What ends it when another server has taken the place of this one.
    watch: JoinSet<()>,
    /// The command of the server at its other end, and whether it has refused it.
    compare_and_delete: Option<CompareAndDelete>,
    refuses: bool,
    /// The number of the connection, or of the next one.
    epoch: u64,
}

impl Default for Open {
    fn default() -> Self {
        Self {
            connection: None,
            watch: JoinSet::new(),
            compare_and_delete: None,
            refuses: false,
            epoch: next_epoch(),
        }
    }
}

/// Numbers the connections of the process, so that the end of an old one does not end the one after it.
fn next_epoch() -> u64 {
    static EPOCH: AtomicU64 = AtomicU64::new(0);
    EPOCH.fetch_add(1, Ordering::Relaxed)
}

impl Open {
    fn discard(&mut self, epoch: u64) {
        if self.epoch == epoch {
            self.epoch = next_epoch();
            self.connection = None;
            self.watch = JoinSet::new();
            self.compare_and_delete = None;
        }
    }
}

impl Link {
    /// A way to a server. `pushed` is told what comes unasked, and on which connection: messages of a channel, and the end of
    /// the connection.
    pub(crate) fn new(
        route: Route,
        channel: Option<String>,
        shown: String,
        pushed: impl Fn(u64, PushInfo) + Send + Sync + 'static,
    ) -> Self {
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(Some(ANSWER_PATIENCE))
            .set_pipeline_buffer_size(WRITE_QUEUE);
        let (pushed, open, tries) = (Arc::new(pushed), Arc::default(), Tries::default());
        Self { route, config, channel, shown, pushed, open, tries }
    }

    /// The server, for people.
    pub(crate) fn server(&self) -> &str {
        &self.shown
    }

    pub(crate) fn route(&self) -> &Route {
        &self.route
    }

    /// Opens the connection if there is none. Errors without effect.
    pub(crate) async fn connect(&self) -> Result<()> {
        self.connection().await.map(drop)
    }

    /// Sends a command and waits for its answer.
    pub(crate) async fn query(&self, command: &Cmd) -> Result<Value> {
        self.call(Call::of(command)).await.map(|(answer, _)| answer)
    }

    /// Makes a call and waits for its answer, with that of the command behind it. The error is that of the call; the second
    /// answer may be an error as well.
    pub(crate) async fn call(&self, call: Call<'_>) -> Result<Answers> {
        self.ask(call).await?.map_err(|error| error::of_call(error, &self.shown))
    }

    /// As [`Self::call`], with the server's own error. The outer error says that nothing was sent.
    pub(crate) async fn ask(&self, call: Call<'_>) -> Result<Result<Answers, RedisError>> {
        let answers = self.send(call).await?;
        let (Some(script), Err(error)) = (call.script, &answers) else { return Ok(answers) };
        if error.kind() != redis::ErrorKind::Server(ServerErrorKind::NoScript) {
            return Ok(answers);
        }
        Box::pin(async {
            let (_, mut connection) = self.connection().await?;
            // Whatever else is wrong with it, the next call says.
            if let Err(error) = script.load_async(&mut connection).await
                && error::is_answer(&error)
            {
                return Ok(Err(error));
            }
            self.send(call).await
        })
        .await
    }

    /// Sends commands and waits for their answers, or for what the server has against the first one. The outer error says that
    /// nothing was sent.
    async fn send(&self, call: Call<'_>) -> Result<Result<Answers, RedisError>> {
        let (epoch, mut connection) = self.connection().await?;
        let answers = match call {
            Call { command, asking: false, then: None, .. } => {
                connection.send_packed_command(command).await.map(|answer| (answer, None))
            }
            Call { command, asking, then, .. } => {
                let mut together = redis::pipe();
                if asking {
                    together.cmd("ASKING");
                }
                together.add_command(command.clone());
                if let Some(then) = then {
                    together.add_command(then.clone());
                }
                let count = 1 + usize::from(then.is_some());
                let answers = connection.send_packed_commands(&together, usize::from(asking), count).await;
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
            None => Box::pin(self.tries.get(|| self.current(), self.open())).await,
        }
    }

    async fn open(&self) -> Result<(u64, MultiplexedConnection)> {
        let epoch = self.lock().epoch;
        let config = self.config.clone().set_push_sender(self.ear(epoch));
        let mut opened = self.route.open(&config, &self.shown).await?;
        if let Some(channel) = &self.channel {
            let subscribed = opened.connection.subscribe(channel).await;
            subscribed.map_err(|error| error::of_connecting(error, &self.shown))?;
        }
        let replaced = self.route.replaced(&opened);
        let Opened { connection, compare_and_delete, .. } = opened;
        let mut open = self.lock();
        if open.epoch == epoch {
            if let Some(replaced) = replaced {
                let hear = self.ear(epoch);
                open.watch.spawn(async move {
                    replaced.await;
                    // To all who use it this is as if the server had hung up.
                    let _ = hear(PushInfo { kind: PushKind::Disconnection, data: Vec::new() });
                });
            }
            open.connection = Some(connection.clone());
            open.compare_and_delete = compare_and_delete;
            open.refuses = false;
        }
        Ok((epoch, connection))
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
            pushed(epoch, push);
            Ok(())
        }
    }

    fn current(&self) -> Option<(u64, MultiplexedConnection)> {
        let open = self.lock();
        Some((open.epoch, open.connection.clone()?))
    }

    /// Which connection is open, if one is.
    pub(crate) fn epoch(&self) -> Option<u64> {
        let open = self.lock();
        open.connection.as_ref().map(|_| open.epoch)
    }

    /// The compare-and-delete of the server that we are connected to, by what it says of itself.
    pub(crate) fn compare_and_delete_of_server(&self) -> Option<CompareAndDelete> {
        self.lock().compare_and_delete
    }

    /// The same, unless it was refused.
    pub(crate) fn compare_and_delete(&self) -> Option<CompareAndDelete> {
        let open = self.lock();
        open.compare_and_delete.filter(|_| !open.refuses)
    }

    /// The server refuses its compare-and-delete. The next connection may allow it, or lead elsewhere.
    pub(crate) fn without_compare_and_delete(&self) {
        self.lock().refuses = true;
    }

    /// Ends the connection. The next call opens another one.
    pub(crate) fn hang_up(&self) {
        let mut open = self.lock();
        let epoch = open.epoch;
        open.discard(epoch);
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
