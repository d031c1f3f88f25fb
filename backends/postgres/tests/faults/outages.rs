//! Connections that are ended, a server that is killed, stands still or is cut off, tables that are locked: while somebody holds,
//! waits, acquires and releases.

use std::time::Duration;

use ringfence::{Guard, Locks, Result};
use ringfence_core::{Clock, Effect, ErrorKind, Lease, Release, Renewal, Retry, SystemClock, Wait};
use ringfence_servers::{Proxy, Psql};

use crate::crowd::Crowd;
use crate::stage::{
    ANSWER_PATIENCE, LONG, NAME, Stage, exclusive, granted, its_turn, locks, now, release, renew, waits,
    within,
};

/// Longer than an answer is waited for.
const STALL: Duration = Duration::from_millis(3500);

/// Longer than a turn stands that nobody takes.
const COMMIT: Duration = Duration::from_millis(1500);

/// A server, the network before it, and what happens to them.
struct Outage {
    stage: Stage,
    proxy: Proxy,
    far: String,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// `pg_terminate_backend`, of all of them.
    BackendsTerminated,
    /// All processes of the server are killed, and it recovers.
    Crash,
    /// It is shut down at once, with a word to its clients, and recovers.
    ShutDown,
    /// Nothing passes and nobody hangs up, for longer than an answer is waited for.
    HalfOpen,
    /// The server is stopped for longer than an answer is waited for.
    Stall,
    /// A transaction has all of our tables, for longer than an answer is waited for.
    TablesLocked,
    /// The same for a moment.
    TablesLockedBriefly,
    /// `VACUUM FULL` stands behind a transaction that reads, and everybody stands behind it.
    VacuumFull,
}

const LOCK_TABLES: &str = "BEGIN; LOCK TABLE ringfence.locks, ringfence.places, ringfence.sessions, \
    ringfence.forgotten, ringfence.records IN ACCESS EXCLUSIVE MODE";

impl Outage {
    async fn new(fault: Fault) -> Option<Self> {
        let stage = Stage::new().await?;
        let (proxy, far) = stage.proxy().await;
        Some(Self { stage, proxy, far, fault })
    }

    /// Where somebody connects to whom the fault concerns.
    fn url(&self) -> String {
        if self.fault == Fault::HalfOpen { self.far.clone() } else { self.stage.server.url() }
    }

    async fn locks(&self) -> Locks {
        locks(&self.url()).await
    }

    /// The fault, from its beginning to its end, with what is done while it lasts.
    async fn befalls<T>(&mut self, meanwhile: impl Future<Output = T>) -> T {
        let server = &mut self.stage.server;
        let done = match self.fault {
            Fault::BackendsTerminated => {
                let (done, ended) = tokio::join!(meanwhile, server.terminate_backends());
                assert!(ended > 1, "there were connections to end: {ended}");
                done
            }
            Fault::Crash => {
                server.kill();
                tokio::join!(meanwhile, server.restart()).0
            }
            Fault::ShutDown => {
                server.shut_down().await;
                tokio::join!(meanwhile, server.restart()).0
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
            Fault::TablesLocked | Fault::TablesLockedBriefly => {
                let mut theirs = server.session();
                assert_eq!(theirs.ask(LOCK_TABLES).await, "");
                let lasts = if self.fault == Fault::TablesLocked { STALL } else { ANSWER_PATIENCE / 4 };
                tokio::join!(meanwhile, async {
                    tokio::time::sleep(lasts).await;
                    assert_eq!(theirs.ask("COMMIT").await, "");
                })
                .0
            }
            Fault::VacuumFull => {
                let (mut reader, mut vacuum) = (server.session(), server.session());
                stands_behind(&mut reader, &mut vacuum, &self.stage).await;
                tokio::join!(meanwhile, async {
                    tokio::time::sleep(STALL).await;
                    assert_eq!(reader.ask("COMMIT").await, "");
                    assert_eq!(vacuum.answer().await, "");
                })
                .0
            }
        };
        // The end of a connection is known by the time at which a new one has an answer.
        self.stage.state().await;
        done
    }
}

/// Has a `VACUUM FULL` wait for the end of a transaction.
async fn stands_behind(reader: &mut Psql, vacuum: &mut Psql, stage: &Stage) {
    assert_eq!(reader.ask("BEGIN; SELECT FROM ringfence.locks WHERE false").await, "");
    vacuum.send("VACUUM FULL ringfence.locks");
    let waits =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'VACUUM%' AND wait_event_type = 'Lock'";
    stage.says(waits, "1").await;
}

async fn take(locks: &Locks, ttl: Duration) -> Result<Guard> {
    within("an answer to an acquire", locks.lock(NAME).ttl(ttl).acquire()).await
}

/// Without it a moment without a server would cost a holder its lock, or a waiter its turn, or either of them a connection
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
    assert_eq!(outage.stage.state().await.holders.len(), 1, "the lease stands");
    // Whoever was passed over stands in line again.
    outage.stage.sees_waiters(1).await;
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
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
    // A release that did not arrive is made again in the background.
    outage.stage.sees_it_free().await;
    for name in [NAME, other] {
        let again = within("an answer", ann.lock(name).ttl(LONG).try_acquire()).await;
        let again = again.expect("the next call finds the way back by itself");
        let again = again.unwrap_or_else(|| panic!("{name} must be free again"));
        within("an answer", again.release()).await.expect("it holds");
    }
}

/// Several who take turns meanwhile: whatever a fault does to any statement, no two of them hold, tokens rise, nobody's sum is
/// lost, and when it is over they go on.
async fn turns_are_taken_through(fault: Fault) {
    let Some(mut outage) = Outage::new(fault).await else { return };
    let crowd = Crowd::gathers(&outage.url(), 4, Duration::from_secs(2)).await;
    for _ in 0..2 {
        outage.befalls(async {}).await;
        // Somebody is granted the lock again.
        let number = granted_last(&outage.stage).await;
        within("the next turns", async {
            while granted_last(&outage.stage).await < number + 8 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
    let holds = crowd.disperses(&outage.stage.server.url()).await;
    // Of 16 grants, of which each of the four may have missed one in each outage, because the answer came too late or never.
    assert!(holds >= 8, "they held {holds} times");
    outage.stage.sees_it_free().await;
}

async fn granted_last(stage: &Stage) -> i64 {
    stage.number(&format!("SELECT coalesce(max(number), 0) FROM ringfence.locks WHERE name = '{NAME}'")).await
}

macro_rules! outages {
    ($($fault:ident: $outlive:ident, $meanwhile:ident, $turns:ident;)*) => {$(
        #[tokio::test]
        async fn $outlive() {
            a_holder_and_a_waiter_outlive(Fault::$fault).await;
        }

        #[tokio::test]
        async fn $meanwhile() {
            what_is_asked_meanwhile_leaves_nothing(Fault::$fault).await;
        }

        #[tokio::test]
        async fn $turns() {
            turns_are_taken_through(Fault::$fault).await;
        }
    )*};
}

outages! {
    BackendsTerminated: terminated_backends_cost_nobody_anything, what_is_asked_of_a_terminated_backend_leaves_nothing,
        turns_are_taken_while_backends_are_terminated;
    Crash: a_crash_costs_nobody_anything, what_is_asked_in_a_crash_leaves_nothing, turns_are_taken_through_crashes;
    ShutDown: a_shutdown_costs_nobody_anything, what_is_asked_in_a_shutdown_leaves_nothing,
        turns_are_taken_through_shutdowns;
    HalfOpen: a_half_open_connection_costs_nobody_anything, what_is_asked_on_a_half_open_connection_leaves_nothing,
        turns_are_taken_through_cuts;
    Stall: a_stalled_server_costs_nobody_anything, what_is_asked_of_a_stalled_server_leaves_nothing,
        turns_are_taken_through_stalls;
    TablesLocked: locked_tables_cost_nobody_anything, what_is_asked_behind_locked_tables_leaves_nothing,
        turns_are_taken_though_tables_are_locked;
    TablesLockedBriefly: tables_locked_for_a_moment_cost_nobody_anything,
        what_is_asked_behind_tables_locked_for_a_moment_leaves_nothing,
        turns_are_taken_though_tables_are_locked_for_moments;
    VacuumFull: a_full_vacuum_costs_nobody_anything, what_is_asked_behind_a_full_vacuum_leaves_nothing,
        turns_are_taken_through_full_vacuums;
}

/// What cannot be renewed must be lost in time, for whatever reason: a guard that relied on an answer would claim to hold for
/// as long as there is none. And when the fault is over the lock must be there for the next one.
async fn a_guard_is_lost_at_its_deadline_and_the_lock_is_free_after(fault: Fault) {
    let Some(mut outage) = Outage::new(fault).await else { return };
    let ttl = Duration::from_millis(1500);
    let (ann, ben) = (outage.locks().await, outage.locks().await);
    let guard = take(&ann, ttl).await.expect("a free lock");
    let record = ann.record(NAME).expect("a name");
    record.open(guard.token()).await.expect("its own record");
    let (lost_at, deadline) = outage
        .befalls(async {
            let watches = async {
                let mut deadline = now();
                // A renewal that was answered before may still move the deadline.
                while guard.is_held() {
                    deadline = SystemClock::new().now().saturating_add(guard.remaining());
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                deadline
            };
            let lost = async {
                guard.lost().await;
                now()
            };
            within("the loss", async { tokio::join!(lost, watches) }).await
        })
        .await;
    assert!(lost_at >= deadline, "lost {:?} before its deadline", deadline.saturating_since(lost_at));
    let late = lost_at.saturating_since(deadline);
    assert!(late < Duration::from_millis(500), "lost {late:?} after its deadline");
    let next = take(&ben, LONG).await.expect("a lock that is free again");
    assert!(next.token().sequence() > guard.token().sequence(), "{guard:?}, then {next:?}");
    let late = record.write(guard.token(), "late").await.expect_err("it is not its record any more");
    assert_eq!(late.kind(), ErrorKind::Stale, "{late:?}");
}

#[tokio::test]
async fn a_guard_of_a_stopped_server_is_lost_at_its_deadline() {
    a_guard_is_lost_at_its_deadline_and_the_lock_is_free_after(Fault::Stall).await;
}

#[tokio::test]
async fn a_guard_that_is_cut_off_is_lost_at_its_deadline() {
    a_guard_is_lost_at_its_deadline_and_the_lock_is_free_after(Fault::HalfOpen).await;
}

#[tokio::test]
async fn a_guard_behind_locked_tables_is_lost_at_its_deadline() {
    a_guard_is_lost_at_its_deadline_and_the_lock_is_free_after(Fault::TablesLocked).await;
}

#[tokio::test]
async fn a_guard_behind_a_full_vacuum_is_lost_at_its_deadline() {
    a_guard_is_lost_at_its_deadline_and_the_lock_is_free_after(Fault::VacuumFull).await;
}

/// A turn counts from when it was given, and is given when its transaction commits. Without a word about those whose places are being
/// taken away, whoever waits takes itself to stand in line until then, and believes in its turn for that much too long.
#[tokio::test]
async fn a_turn_whose_commit_takes_long_is_not_believed_in_for_longer() {
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    let held = granted(&ann, exclusive(Wait::No)).await;
    let waiting = waits(&ben);
    stage.sees_waiters(1).await;
    hands_on_slowly(&stage, &held).await;
    let lease = its_turn(waiting).await;
    assert_eq!(renew(&ben, &lease).await.expect("an answer"), Renewal::Renewed, "{lease:?}");
    assert!(lease.token.sequence() > held.token.sequence(), "{held:?}, then {lease:?}");
    assert_eq!(release(&ben, &lease).await.expect("an answer"), Release::Released);
}

/// Gives a lease back in a transaction whose commit takes longer than the turn stands that it gives to the next in line.
async fn hands_on_slowly(stage: &Stage, held: &Lease) {
    let nonce = held.key.nonce.get().cast_signed();
    let handed_on = format!(
        "BEGIN; SELECT ringfence.release_one('{NAME}', {nonce}); SELECT pg_sleep({}); COMMIT",
        COMMIT.as_secs_f64()
    );
    stage.server.psql(&handed_on).await;
}

/// Who is told of its turn when that is over has it all the same, if it asks before another one has been given one. If it had to
/// stand at the end of the line again, a server whose every commit takes so long would have turns go round.
#[tokio::test]
async fn a_turn_that_was_over_before_it_was_told_is_not_lost() {
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben, cat) = (stage.client().await, stage.client().await, stage.client().await);
    // Now and then somebody looks in between, and passes it on.
    for _ in 0..4 {
        let held = granted(&ann, exclusive(Wait::No)).await;
        let mut first = waits(&ben);
        stage.sees_waiters(1).await;
        let mut second = waits(&cat);
        stage.sees_waiters(2).await;
        hands_on_slowly(&stage, &held).await;
        tokio::select! {
            lease = its_turn(&mut first) => {
                assert_eq!(renew(&ben, &lease).await.expect("an answer"), Renewal::Renewed, "{lease:?}");
                assert!(lease.token.sequence() > held.token.sequence(), "{held:?}, then {lease:?}");
                return;
            }
            lease = its_turn(&mut second) => release(&cat, &lease).await.expect("an answer"),
        };
        let lease = its_turn(first).await;
        release(&ben, &lease).await.expect("an answer");
    }
    panic!("the first in line was sent to its end each time");
}

/// Whoever is told late that there is no server cannot do anything else meanwhile.
#[tokio::test]
async fn a_server_that_is_not_there_is_said_at_once() {
    let Some(mut stage) = Stage::new().await else { return };
    let ann = stage.locks().await;
    stage.server.kill();
    // What is sent before the end of the connection is known is waited out.
    let error = take(&ann, Duration::from_millis(500)).await.expect_err("there is no server");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    let asked = now();
    let error = take(&ann, LONG).await.expect_err("there is no server");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    let took = now().saturating_since(asked);
    assert!(took < Duration::from_secs(1), "it took {took:?}");
}
