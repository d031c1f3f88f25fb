//! Connections that die, a server that stalls or restarts: while somebody holds, waits, acquires and releases.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringfence::{Guard, Locks, Result};
use ringfence_core::{
    Attempt, Backend, Clock, Effect, Error, ErrorKind, Release, Retry, SystemClock, Wait, abandonment,
};
use ringfence_servers::{Proxy, RedisOptions};

use crate::stage::{
    AT_ONCE, FOR_EVER, LONG, NAME, Stage, exclusive, granted, locks, now, release, renew, within,
};

/// Longer than an answer is waited for.
const STALL: Duration = Duration::from_millis(3500);

/// A server, the network before it, and what happens to them.
struct Outage {
    stage: Stage,
    proxy: Proxy,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    ScriptsForgotten,
    ConnectionsKilled,
    /// Nothing passes and nobody hangs up, for longer than an answer is waited for.
    HalfOpen,
    /// The server is stopped for longer than an answer is waited for.
    Stall,
    /// The same, by a command that takes so long.
    SlowCommand,
    RestartWithData,
    RestartWithout,
}

impl Outage {
    async fn new(fault: Fault) -> Option<Self> {
        let options = RedisOptions::new().set("enable-debug-command", &["local"]);
        let options = if fault == Fault::RestartWithData { options.durable() } else { options };
        let stage = Stage::with(options).await?;
        let proxy = Proxy::start(stage.server.port()).await;
        Some(Self { stage, proxy, fault })
    }

    /// Somebody whom the fault concerns.
    async fn locks(&self) -> Locks {
        let is_far = self.fault == Fault::HalfOpen;
        locks(if is_far { self.proxy.port() } else { self.stage.server.port() }).await
    }

    /// The fault, from its beginning to its end, with what is done while it lasts.
    async fn befalls<T>(&mut self, meanwhile: impl Future<Output = T>) -> T {
        let server = &mut self.stage.server;
        let done = match self.fault {
            Fault::ScriptsForgotten => {
                server.command(&["SCRIPT", "FLUSH"]).await;
                meanwhile.await
            }
            Fault::ConnectionsKilled => {
                let (done, ()) = tokio::join!(meanwhile, async {
                    for kind in ["normal", "pubsub"] {
                        server.command(&["CLIENT", "KILL", "TYPE", kind]).await;
                    }
                });
                done
            }
            Fault::HalfOpen => {
                self.proxy.cut();
                let (done, ()) = tokio::join!(meanwhile, async {
                    tokio::time::sleep(STALL).await;
                    self.proxy.mend();
                });
                done
            }
            Fault::Stall => {
                server.stop();
                let (done, ()) = tokio::join!(meanwhile, async {
                    tokio::time::sleep(STALL).await;
                    server.resume();
                });
                done
            }
            Fault::SlowCommand => {
                let seconds = STALL.as_secs_f32().to_string();
                let sleep = ["DEBUG", "SLEEP", &seconds];
                tokio::join!(meanwhile, server.command(&sleep)).0
            }
            Fault::RestartWithData => {
                server.kill();
                let (done, ()) = tokio::join!(meanwhile, server.restart());
                done
            }
            Fault::RestartWithout => {
                server.kill();
                let (done, ()) = tokio::join!(meanwhile, server.restart_empty());
                done
            }
        };
        // The end of a connection is known by the time at which a new one has an answer.
        self.stage.state().await;
        done
    }
}

async fn take(locks: &Locks, ttl: Duration) -> Result<Guard> {
    within("an answer to an acquire", locks.lock(NAME).ttl(ttl).acquire()).await
}

/// Without it a moment without a server would cost a holder its lock, or a waiter its place, or either of them a connection
/// that never comes back.
async fn a_holder_and_a_waiter_outlive(fault: Fault) {
    let Some(mut outage) = Outage::new(fault).await else { return };
    let (ann, ben) = (outage.locks().await, outage.locks().await);
    let first = take(&ann, LONG).await.expect("a free lock");
    let waits = tokio::spawn({
        let ben = ben.clone();
        async move { ben.lock(NAME).ttl(LONG).acquire().await }
    });
    outage.stage.sees_waiters(1).await;
    outage.befalls(async {}).await;
    assert!(first.is_held(), "its deadline is a minute away");
    // The place stands, whatever became of the connection.
    outage.stage.sees_waiters(1).await;
    assert!(outage.stage.state().await.holders.len() == 1, "and so does the lease");
    let token = first.token();
    within("an answer", first.release()).await.expect("the next call finds the way back by itself");
    let second = within("the turn of the one that waits", waits).await.expect("no panic");
    let second = second.expect("it outlives the outage in line");
    assert!(second.token().sequence() > token.sequence(), "{token}, then {}", second.token());
    within("an answer", second.release()).await.expect("it holds");
    outage.stage.sees_it_free().await;
}

/// Without it an attempt or a release that fell into the outage would leave a lock that nobody holds until its TTL, or the
/// process would have to connect anew.
async fn what_is_asked_meanwhile_leaves_nothing(fault: Fault) {
    let Some(mut outage) = Outage::new(fault).await else { return };
    let (ann, ben) = (outage.locks().await, outage.locks().await);
    let held = take(&ann, LONG).await.expect("a free lock");
    let other = "orders/43";
    let (acquired, released) = outage
        .befalls(async {
            tokio::join!(
                within("an answer to an acquire", ben.lock(other).ttl(LONG).acquire()),
                within("an answer to a release", held.release())
            )
        })
        .await;
    match acquired {
        Ok(guard) => within("an answer", guard.release()).await.expect("it holds"),
        Err(error) => {
            assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Later), "{error:?}");
            assert_eq!(error.effect(), Effect::None, "what came of it is undone: {error:?}");
        }
    }
    if let Err(error) = released {
        let expected = match fault {
            Fault::RestartWithout => [ErrorKind::Unavailable, ErrorKind::Lost],
            _ => [ErrorKind::Unavailable; 2],
        };
        assert!(expected.contains(&error.kind()), "{error:?}");
        // It may not have arrived, where there was no server or no network. Then it ends at its TTL.
        if outage.stage.state().await.holders.len() == 1 {
            assert!(
                matches!(fault, Fault::RestartWithData | Fault::ConnectionsKilled),
                "{fault:?}: {error:?}"
            );
            let nonce = outage.stage.state().await.holders[0].token.nonce();
            ann.evict(NAME, nonce).await.expect("an answer");
        }
    }
    for name in [NAME, other] {
        let again = within("an answer", ann.lock(name).ttl(LONG).try_acquire()).await;
        let again = again.expect("the next call finds the way back by itself");
        let again = again.unwrap_or_else(|| panic!("{name} must be free again"));
        within("an answer", again.release()).await.expect("it holds");
    }
}

macro_rules! outages {
    ($($fault:ident: $outlive:ident, $meanwhile:ident;)*) => {$(
        #[tokio::test]
        async fn $outlive() {
            a_holder_and_a_waiter_outlive(Fault::$fault).await;
        }

        #[tokio::test]
        async fn $meanwhile() {
            what_is_asked_meanwhile_leaves_nothing(Fault::$fault).await;
        }
    )*};
}

outages! {
    ScriptsForgotten: forgotten_scripts_cost_nobody_anything, forgotten_scripts_are_loaded_again;
    ConnectionsKilled: killed_connections_cost_nobody_anything, what_is_asked_on_a_killed_connection_leaves_nothing;
    HalfOpen: a_half_open_connection_costs_nobody_anything, what_is_asked_on_a_half_open_connection_leaves_nothing;
    Stall: a_stalled_server_costs_nobody_anything, what_is_asked_of_a_stalled_server_leaves_nothing;
    SlowCommand: a_slow_command_costs_nobody_anything, what_is_asked_behind_a_slow_command_leaves_nothing;
    RestartWithData: a_restart_with_data_costs_nobody_anything, what_is_asked_in_a_restart_leaves_nothing;
}

/// A server that forgot gives the lock to the next one while the first still believes in it: without the loss it would do so
/// for as long as it works.
#[tokio::test]
async fn after_a_restart_without_data_the_holder_learns_that_it_lost_and_the_waiter_holds() {
    let fault = Fault::RestartWithout;
    let Some(mut outage) = Outage::new(fault).await else { return };
    let (ann, ben) = (outage.locks().await, outage.locks().await);
    // Renewed after a second, a minute before it would lapse.
    let first = take(&ann, Duration::from_secs(3)).await.expect("a free lock");
    let waits = tokio::spawn({
        let ben = ben.clone();
        async move { ben.lock(NAME).ttl(LONG).acquire().await }
    });
    outage.stage.sees_waiters(1).await;
    outage.befalls(async {}).await;
    let second = within("the turn of the one that waits", waits).await.expect("no panic");
    let second = second.expect("it outlives the outage in line");
    assert!(second.token().sequence() > first.token().sequence(), "{first:?}, then {second:?}");
    within("the loss", first.lost()).await;
    assert!(!first.is_held() && second.is_held());
    let error = within("an answer", first.release()).await.expect_err("it is lost");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error:?}");
    assert!(second.is_held(), "what a late release of the first one must not end");
    within("an answer", second.release()).await.expect("it holds");
    what_is_asked_meanwhile_leaves_nothing(fault).await;
}

/// A guard that relied on its renewals to learn of the loss would claim to hold for as long as they hang.
#[tokio::test]
async fn while_nobody_answers_a_guard_is_lost_at_its_deadline_and_never_before() {
    let Some(outage) = Outage::new(Fault::HalfOpen).await else { return };
    let clock = SystemClock::new();
    let ann = outage.locks().await;
    let guard = take(&ann, Duration::from_millis(1500)).await.expect("a free lock");
    outage.proxy.cut();
    let lost = guard.lost();
    let mut deadline = now();
    let watches = async {
        // A renewal that was answered before the cut may still move the deadline.
        while guard.is_held() {
            deadline = clock.now().saturating_add(guard.remaining());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (lost_at, ()) = within("the loss", async {
        tokio::join!(
            async {
                lost.await;
                clock.now()
            },
            watches
        )
    })
    .await;
    assert!(lost_at >= deadline, "lost {:?} before its deadline", deadline.saturating_since(lost_at));
    let late = lost_at.saturating_since(deadline);
    assert!(late < Duration::from_millis(500), "lost {late:?} after its deadline");
    outage.proxy.mend();
    drop(guard);
    let again = take(&ann, LONG).await.expect("the next call finds the way back by itself");
    assert!(again.is_held());
}

/// A connection that a firewall has forgotten takes everything and answers nothing, while a new one would. The keeper waits less
/// long for a renewal than a connection for an answer: if whoever stops waiting stopped the connection's clock with it, it
/// would be used until every lease is lost.
#[tokio::test]
async fn a_connection_that_swallows_renewals_is_given_up_before_the_leases_lapse() {
    let Some(outage) = Outage::new(Fault::HalfOpen).await else { return };
    let ann = outage.locks().await;
    let ttl = Duration::from_secs(6);
    let mut guards = Vec::new();
    // One is renewed alone, two are renewed together.
    for name in [NAME, "orders/43"] {
        guards.push(ann.lock(name).ttl(ttl).acquire().await.expect("a free lock"));
    }
    let record = ann.record(NAME).expect("a name");
    outage.proxy.delay(LONG);
    // What comes after this on its connection waits for it. Nobody waits for its answer.
    let read = tokio::time::timeout(Duration::from_millis(200), record.read()).await;
    assert!(read.is_err(), "it must be under way: {read:?}");
    outage.proxy.delay(Duration::ZERO);
    let lost = async {
        tokio::select! {
            () = guards[0].lost() => NAME,
            () = guards[1].lost() => "orders/43",
        }
    };
    let lost = tokio::time::timeout(ttl + ttl / 2, lost).await;
    assert!(lost.is_err(), "lost, where a new connection would have done: {lost:?}");
    assert!(guards.iter().all(Guard::is_held));
}

/// Whoever is told late that there is no server cannot do anything else meanwhile. What was never sent needs no withdrawal.
#[tokio::test]
async fn a_server_that_is_not_there_is_said_at_once() {
    let Some(mut outage) = Outage::new(Fault::RestartWithout).await else { return };
    let ann = outage.locks().await;
    outage.stage.server.kill();
    // What is sent before the end of the connection is known is waited out.
    let error = take(&ann, Duration::from_millis(500)).await.expect_err("there is no server");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    let asked = now();
    let error = take(&ann, LONG).await.expect_err("there is no server");
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Later), "{error:?}");
    assert_eq!(error.effect(), Effect::None, "{error:?}");
    let took = now().saturating_since(asked);
    assert!(took < AT_ONCE, "it took {took:?} to say: {error}");
}

/// Neither lasts, and both look as if the lock service were broken: who is on call has to know where to look.
#[tokio::test]
async fn what_keeps_a_server_from_serving_is_said() {
    let Some(stage) = Stage::new().await else { return };
    let ann = stage.client().await;
    let refusal = async || match ann.acquire(exclusive(Wait::No)).await {
        Ok(Attempt::Granted(lease)) => {
            release(&ann, &lease).await.expect("an answer");
            None
        }
        Ok(busy) => panic!("nobody else wants it: {busy:?}"),
        Err(error) => Some(error),
    };
    let says = |error: &Error, words: &str| {
        let said = (error.kind(), error.retry(), error.effect());
        assert_eq!(said, (ErrorKind::Unavailable, Retry::Later, Effect::None), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    };

    let replicas =
        async |least| stage.server.command(&["CONFIG", "SET", "min-replicas-to-write", least]).await;
    replicas("1").await;
    says(&refusal().await.expect("no replica follows it"), "min-replicas-to-write");
    replicas("0").await;

    stage.server.command(&["CONFIG", "SET", "lua-time-limit", "1"]).await;
    let endless = stage.server.ask(&["EVAL", "while true do end", "0"]);
    let (killed, ()) = tokio::join!(endless, async {
        within("a script that is found endless", async {
            while stage.server.ask(&["PING"]).await.is_ok() {}
        })
        .await;
        says(&refusal().await.expect("it serves nobody"), "SCRIPT KILL");
        stage.server.command(&["SCRIPT", "KILL"]).await;
    });
    assert!(killed.is_err(), "{killed:?}");
    assert!(refusal().await.is_none());
}

/// A disk that is full for a moment would cost everybody in line its place, and give the lock to whoever comes back first.
#[tokio::test]
async fn a_waiter_keeps_its_place_while_the_server_cannot_write() {
    let Some(stage) = Stage::with(RedisOptions::new().set("save", &["3600", "1"])).await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    let held = granted(&ann, exclusive(Wait::No)).await;
    let waiting = tokio::spawn(async move { (granted(&ben, exclusive(FOR_EVER)).await, ben) });
    stage.sees_waiters(1).await;
    let snapshot = cannot_write(&stage).await;
    let refusal = renew(&ann, &held).await.expect_err("it takes no changes");
    assert_eq!((refusal.kind(), refusal.retry()), (ErrorKind::Full, Retry::Later), "{refusal}");
    // The waiter has looked after its place in vain, and again.
    let refused = async || stage.server.info("errorstat_MISCONF").await.expect("it has refused something");
    for _ in 0..2 {
        let before = refused().await;
        let again = async {
            while refused().await == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within("a look", again).await;
    }
    can_write(&stage, &snapshot).await;
    stage.sees_waiters(1).await;
    assert_eq!(release(&ann, &held).await.expect("an answer"), Release::Released);
    let (next, ben) = within("a turn", waiting).await.expect("no panic");
    assert_eq!(release(&ben, &next).await.expect("an answer"), Release::Released);
}

/// It waited for as long as its lease could have lived, to take back what had never been given.
#[tokio::test]
async fn a_wait_ends_while_the_server_cannot_write_and_the_line_is_left_afterwards() {
    let Some(stage) = Stage::with(RedisOptions::new().set("save", &["3600", "1"])).await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    granted(&ann, exclusive(Wait::No)).await;
    let (wanted, abandoned) = abandonment();
    let waiting = tokio::spawn(async move {
        let attempt = ben.acquire(exclusive(FOR_EVER).abandoned_by(abandoned)).await;
        (attempt, ben)
    });
    stage.sees_waiters(1).await;
    let snapshot = cannot_write(&stage).await;
    drop(wanted);
    let (attempt, _ben) = within("the end of a wait", waiting).await.expect("no panic");
    assert!(matches!(attempt, Ok(Attempt::Busy(_))), "{attempt:?}");
    can_write(&stage, &snapshot).await;
    stage.sees_waiters(0).await;
}

/// Has the server take no changes, because no snapshot can take the place of a folder, until that is [gone](can_write).
async fn cannot_write(stage: &Stage) -> PathBuf {
    let snapshot = stage.server.socket().with_file_name("data").join("dump.rdb");
    fs::create_dir(&snapshot).expect("a folder");
    save(stage, "err").await;
    snapshot
}

async fn can_write(stage: &Stage, snapshot: &Path) {
    fs::remove_dir(snapshot).expect("it is empty");
    save(stage, "ok").await;
}

/// Has the server write a snapshot, with this outcome.
async fn save(stage: &Stage, outcome: &str) {
    stage.server.command(&["BGSAVE"]).await;
    let saved = async {
        while stage.server.info("rdb_last_bgsave_status").await.as_deref() != Some(outcome) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("a snapshot", saved).await;
}
