//! What a process's connections are: few, needed, and not lasting.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    Attempt, Backend, BackendUrl, Effect, Error, ErrorKind, Eviction, Lease, Mode, Release, Renewal, Retry,
    SystemClock, Wait,
};
use ringfence_postgres::PostgresBackend;
use ringfence_servers::{Pgbouncer, PostgresOptions, postgres_18};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::stage::{
    AT_ONCE, FOR_EVER, LONG, NAME, Stage, client, exclusive, granted, its_turn, named, now, release, renew,
    request, request_of, waits, within,
};

/// What a process may have: for attempts, for everything else, and to hear of its turns.
const CONNECTIONS: i64 = 3;

impl Stage {
    /// A role that is no superuser, with the rights that we need, and the URL of it.
    async fn role(&self, role: &str, options: &str) -> String {
        let make = format!(
            "CREATE ROLE {role} LOGIN {options}; GRANT USAGE ON SCHEMA ringfence TO {role}; \
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA ringfence TO {role}"
        );
        self.server.psql(&make).await;
        self.server.url_of(role)
    }
}

/// Everybody of a process who wants the lock, in line; each sends its lease.
fn line(client: &Arc<PostgresBackend>, waiters: usize) -> mpsc::UnboundedReceiver<Lease> {
    let (sender, turns) = mpsc::unbounded_channel();
    for _ in 0..waiters {
        join(client, sender.clone());
    }
    turns
}

/// One more of them.
fn join(client: &Arc<PostgresBackend>, turns: mpsc::UnboundedSender<Lease>) {
    let client = Arc::clone(client);
    tokio::spawn(async move {
        match client.acquire(exclusive(FOR_EVER)).await {
            // The test may be over.
            Ok(Attempt::Granted(lease)) => drop(turns.send(lease)),
            other => panic!("it must be granted: {other:?}"),
        }
    });
}

/// Lets so many of those in line have their turns, one after the other.
async fn have_turns(
    mut turns: mpsc::UnboundedReceiver<Lease>,
    client: &Arc<PostgresBackend>,
    turns_wanted: usize,
) {
    let mut numbers = HashSet::new();
    for _ in 0..turns_wanted {
        let lease = within("the next turn", turns.recv()).await.expect("a lease");
        // On a busy machine it may have lapsed already: a turn that nobody confirms stands for less than a second.
        release(client, &lease).await.expect("an answer");
        assert!(numbers.insert(lease.token.sequence()), "two have the number of {lease:?}");
    }
}

/// A connection for each waiter would be more than any server has.
#[tokio::test]
async fn a_thousand_waiters_of_a_process_have_three_connections() {
    const WAITERS: usize = 1000;
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben) = (stage.client_named("ann").await, stage.client_named("ben").await);
    let held = granted(&ben, exclusive(Wait::No)).await;
    let turns = line(&ann, WAITERS);
    stage.sees_waiters(WAITERS).await;
    assert!(stage.connections("ann").await <= CONNECTIONS, "{}", stage.connections("ann").await);
    release(&ben, &held).await.expect("an answer");
    let begun = now();
    have_turns(turns, &ann, 100).await;
    println!("100 turns of {WAITERS} waiters took {:?}", now().saturating_since(begun));
    assert!(stage.connections("ann").await <= CONNECTIONS, "{}", stage.connections("ann").await);
}

/// One look for all who wait is what waiting costs a server. If each of them asked for itself now and then, those who wait would
/// keep it busy, and everybody would wait for that.
#[tokio::test]
async fn who_waits_asks_nothing_until_it_is_called() {
    const CALLS: &str = "SELECT coalesce(sum(calls), 0) FROM pg_stat_user_functions WHERE funcname = ";
    let Some(stage) = Stage::with(PostgresOptions::new().set("track_functions", "pl")).await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    let held = granted(&ben, exclusive(Wait::No)).await;
    let waiting = waits(&ann);
    stage.sees_waiters(1).await;
    // A connection on which something is done says every second what it was.
    let looked = async || stage.number(&format!("{CALLS}'look'")).await;
    let before = looked().await;
    within("a while in which it looks", async {
        while looked().await < before + 12 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    release(&ben, &held).await.expect("an answer");
    let lease = its_turn(waiting).await;
    release(&ann, &lease).await.expect("an answer");
    // What a connection has not said yet it says at its end.
    drop((ann, ben));
    stage.says("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ringfence'", "0").await;
    assert_eq!(stage.number(&format!("{CALLS}'acquire_one'")).await, 2);
}

/// The same of many processes: none of them has more for what the others do.
#[tokio::test]
async fn twenty_processes_with_fifty_waiters_each_have_three_connections_each() {
    const WAITERS: usize = 50;
    let Some(stage) = Stage::new().await else { return };
    let ben = stage.client_named("ben").await;
    let held = granted(&ben, exclusive(Wait::No)).await;
    let mut processes = Vec::new();
    for number in 0..20 {
        let ann = stage.client_named(&format!("ann-{number}")).await;
        let turns = line(&ann, WAITERS);
        // One process after the other: it is not the crowd at the door that is looked at here.
        stage.sees_waiters((number + 1) * WAITERS).await;
        processes.push((ann, turns));
    }
    let most = "SELECT max(connections) FROM (SELECT count(*) AS connections FROM pg_stat_activity \
        WHERE application_name LIKE 'ann-%' GROUP BY application_name) AS of_each";
    let connections = stage.number(most).await;
    assert!(connections <= CONNECTIONS, "{connections}");
    release(&ben, &held).await.expect("an answer");
    let (counted, mut all) = mpsc::unbounded_channel();
    for (ann, mut turns) in processes {
        let counted = counted.clone();
        tokio::spawn(async move {
            while let Some(lease) = turns.recv().await {
                release(&ann, &lease).await.expect("an answer");
                // The test may be over.
                let _ = counted.send(lease.token.sequence());
            }
        });
    }
    let mut numbers = HashSet::new();
    for _ in 0..2 * WAITERS {
        let number = within("the next turn", all.recv()).await.expect("a number");
        assert!(numbers.insert(number), "two have the number {number}");
    }
}

/// A message to everybody, or to nobody in particular, would be paid for by all for every turn.
#[tokio::test]
async fn who_waits_is_told_of_its_turn_and_nobody_else_of_anything() {
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben, cat) = (stage.client().await, stage.client().await, stage.client().await);
    let mut listener = stage.server.session();
    // Where nobody waits nobody is told, not even the one that holds.
    let held = granted(&ann, exclusive(Wait::No)).await;
    let channel = |rows: &str, what: &str| {
        format!(
            "SELECT 'LISTEN ringfence_' || to_hex(session) FROM ringfence.{rows} WHERE {what} \\gexec\nSELECT 1"
        )
    };
    assert_eq!(listener.ask(&channel("locks", "session IS NOT NULL")).await, "1");
    assert_eq!(renew(&ann, &held).await.expect("an answer"), Renewal::Renewed);
    assert_eq!(release(&ann, &held).await.expect("an answer"), Release::Released);
    let held = granted(&ann, exclusive(Wait::No)).await;
    assert_eq!(listener.ask("SELECT 2").await, "2", "nobody waits");

    let first = waits(&ben);
    stage.sees_waiters(1).await;
    let second = waits(&cat);
    stage.sees_waiters(2).await;
    assert_eq!(listener.ask(&channel("places", "kind = 'w'")).await, "1");
    let to_hex = "SELECT to_hex(nonce) || ':' || to_hex(session) FROM ringfence.places WHERE kind = 'w' ORDER BY place";
    let in_line = stage.server.psql(to_hex).await;
    let (nonce, session) = in_line.lines().next().and_then(|first| first.split_once(':')).expect("the first");
    assert_eq!(release(&ann, &held).await.expect("an answer"), Release::Released);
    let first = its_turn(first).await;
    let heard = listener.ask("SELECT 3").await;
    let told = heard.lines().filter(|line| line.contains("notification")).collect::<Vec<_>>();
    assert_eq!(told.len(), 1, "{heard}");
    assert!(
        told[0].contains(&format!("\"ringfence_{session}\""))
            && told[0].contains(&format!("\"turn:{nonce}:{}\"", first.token.grant())),
        "{heard}"
    );
    assert_eq!(release(&ben, &first).await.expect("an answer"), Release::Released);
    let second = its_turn(second).await;
    assert_eq!(release(&cat, &second).await.expect("an answer"), Release::Released);
}

/// A waiter whose ears are cut is not told of its turn. Without the net it would wait for ever; and a turn that it does not
/// take it loses.
#[tokio::test]
async fn a_waiter_that_cannot_be_told_finds_its_turn_by_itself() {
    let Some(stage) = Stage::new().await else { return };
    // Two connections, and none to hear by.
    let deaf = stage.role("deaf", "CONNECTION LIMIT 2").await;
    let (ann, ben) = (client(&named(&deaf, "ann")).await, stage.client().await);
    for _ in 0..3 {
        let held = granted(&ben, exclusive(Wait::No)).await;
        let waiting = waits(&ann);
        stage.sees_waiters(1).await;
        let listens = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'deaf' AND query LIKE 'LISTEN%'";
        assert_eq!(stage.number(listens).await, 0, "it hears nothing");
        let released = now();
        release(&ben, &held).await.expect("an answer");
        let lease = its_turn(waiting).await;
        let took = now().saturating_since(released);
        assert!(took < AT_ONCE, "it took {took:?}");
        assert!(lease.token.sequence() > held.token.sequence());
        assert_eq!(renew(&ann, &lease).await.expect("an answer"), Renewal::Renewed, "for its whole TTL");
        release(&ann, &lease).await.expect("an answer");
    }
}

/// Somebody who listens and stays in a transaction keeps the server from forgetting what it has told. When it has no room left, it
/// commits nothing that is to tell anybody anything: no turn, for as long as that lasts.
#[tokio::test]
async fn a_lock_goes_on_from_hand_to_hand_where_there_is_no_room_for_messages() {
    let Some(programs) = postgres_18() else { return };
    let options = PostgresOptions::new().programs(programs).set("max_notify_queue_pages", "64");
    let Some(stage) = Stage::with(options).await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    let held = granted(&ann, exclusive(Wait::No)).await;
    let waiting = waits(&ben);
    stage.sees_waiters(1).await;
    let listener = stage.server.without_room_for_messages().await;
    assert_eq!(release(&ann, &held).await.expect("an answer"), Release::Released);
    let lease = its_turn(waiting).await;
    assert!(lease.token.sequence() > held.token.sequence(), "{held:?}, then {lease:?}");
    // Who is to be told that it has lost its lease learns so by its next renewal.
    let evicted = ann.evict(&lease.key.name, lease.key.nonce).await.expect("an answer");
    assert_eq!((evicted, renew(&ben, &lease).await.expect("an answer")), (Eviction::Evicted, Renewal::Lost));
    // In the server's own locks nobody else can end it, and its session is ended.
    let advisory = client(&format!("{}?recipe=advisory", stage.server.url())).await;
    let lease = granted(&advisory, exclusive(Wait::No)).await;
    let operator = client(&format!("{}?recipe=advisory", stage.server.url())).await;
    let evicted = operator.evict(&lease.key.name, lease.key.nonce).await.expect("an answer");
    assert_eq!(evicted, Eviction::Evicted);
    drop(listener);
}

/// Whose connection for messages is ended while it waits hears again of its turns, from a new one.
#[tokio::test]
async fn ears_that_are_cut_grow_again() {
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben) = (stage.client_named("ann").await, stage.client().await);
    let held = granted(&ben, exclusive(Wait::No)).await;
    let waiting = waits(&ann);
    let listening =
        "FROM pg_stat_activity WHERE application_name = 'ann' AND query LIKE 'LISTEN%' AND state = 'idle'";
    stage.says(&format!("SELECT count(*) {listening}"), "1").await;
    let pid = stage.number(&format!("SELECT pid {listening}")).await;
    stage.number(&format!("SELECT count(pg_terminate_backend({pid}, 10000))")).await;
    stage.says(&format!("SELECT count(*) {listening} AND pid <> {pid}"), "1").await;
    stage.sees_waiters(1).await;
    release(&ben, &held).await.expect("an answer");
    let lease = its_turn(waiting).await;
    release(&ann, &lease).await.expect("an answer");
    assert_eq!(stage.connections("ann").await, CONNECTIONS);
}

/// An operator ends idle sessions for other programs. Ours are idle as long as nothing is to be said, and would be ended for it,
/// which would cost a holder a connection at its every renewal.
#[tokio::test]
async fn an_idle_session_timeout_of_the_server_is_not_for_us() {
    let options = PostgresOptions::new().set("idle_session_timeout", "1s");
    let Some(stage) = Stage::with(options).await else { return };
    let (ann, ben) = (stage.client_named("ann").await, stage.client_named("ben").await);
    let held = granted(&ann, exclusive(Wait::No)).await;
    let waiting = waits(&ben);
    stage.sees_waiters(1).await;
    let pids = "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity WHERE application_name IN ('ann', 'ben')";
    stage.says(&format!("SELECT array_length(string_to_array(({pids}), ' '), 1)"), "6").await;
    let before = stage.server.psql(pids).await;
    // Somebody else is idle for longer than it may be.
    let mut other = stage.server.session();
    assert_eq!(other.ask("SELECT 1").await, "1");
    within("the end of another idle session", async {
        let pid = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'psql' AND state = 'idle'";
        while stage.number(pid).await > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(stage.server.psql(pids).await, before, "the sessions are those of before");
    release(&ann, &held).await.expect("an answer");
    release(&ben, &its_turn(waiting).await).await.expect("an answer");
}

/// Behind a pooler the server's settings hold, because a session is not ours: whatever it ends, nobody loses.
#[tokio::test]
async fn idle_sessions_that_end_behind_a_pooler_cost_nobody_anything() {
    let options = PostgresOptions::new().set("idle_session_timeout", "200ms");
    let Some(stage) = Stage::with(options).await else { return };
    let Some(pooler) = Pgbouncer::start(&stage.server, "transaction").await else { return };
    let (ann, ben) = (client(&pooler.url()).await, client(&pooler.url()).await);
    let held = granted(&ann, exclusive(Wait::No)).await;
    let waiting = waits(&ben);
    for _ in 0..4 {
        // The one that waits says something every quarter of a second.
        tokio::time::sleep(Duration::from_millis(250)).await;
        // Where a session ends in the moment in which the pooler gives it something to do, the next renewal comes in time.
        let renewal = loop {
            match renew(&ann, &held).await {
                Ok(renewal) => break renewal,
                Err(error) => assert!(error.to_string().contains("idle_session_timeout"), "{error}"),
            }
        };
        assert_eq!(renewal, Renewal::Renewed);
    }
    assert_eq!(release(&ann, &held).await.expect("an answer"), Release::Released);
    release(&ben, &its_turn(waiting).await).await.expect("an answer");
}

fn has_no_connection(error: &Error) {
    let said = (error.kind(), error.retry(), error.effect());
    assert_eq!(said, (ErrorKind::Unavailable, Retry::Later, Effect::None), "{error:?}");
    assert!(error.to_string().contains("max_connections"), "{error}");
}

/// Another process, where there is a connection for it.
async fn one_more(url: &str) -> Option<PostgresBackend> {
    let url = BackendUrl::parse(url).expect("a URL");
    match PostgresBackend::connect(&url, Arc::new(SystemClock::new())).await {
        Ok(client) => Some(client),
        Err(error) => {
            has_no_connection(&error);
            None
        }
    }
}

/// Others may take all connections. What is held must be kept and given back all the same, by whoever has one; and whoever has
/// none must be told why.
#[tokio::test]
async fn without_connections_leases_are_kept_and_what_is_asked_says_why_not() {
    // Some are kept for superusers, such as those who look on here.
    let options =
        PostgresOptions::new().set("max_connections", "12").set("superuser_reserved_connections", "4");
    let Some(stage) = Stage::with(options).await else { return };
    let url = stage.role("app", "").await;
    let (ann, ben) = (client(&url).await, client(&url).await);
    let held = granted(&ann, exclusive(Wait::No)).await;
    let theirs = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
    // All that ann has, and the one that ben has.
    stage.says(theirs, "4").await;
    let mut others = Vec::new();
    // Who has just looked on may still have one.
    for _ in 0..3 {
        while let Some(other) = one_more(&url).await {
            others.push(other);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    has_no_connection(&ben.acquire(exclusive(Wait::No)).await.expect_err("it has no connection to ask by"));
    has_no_connection(&ben.acquire(exclusive(FOR_EVER)).await.expect_err("nor one to wait by"));
    assert_eq!(renew(&ann, &held).await.expect("an answer"), Renewal::Renewed);
    assert_eq!(release(&ann, &held).await.expect("an answer"), Release::Released);
    // When there are some again, the next call finds one.
    let held = granted(&ann, exclusive(Wait::No)).await;
    assert!(!others.is_empty(), "they had taken all that there were");
    drop(others);
    stage.says(theirs, "4").await;
    let waiting = waits(&ben);
    stage.sees_waiters(1).await;
    assert_eq!(release(&ann, &held).await.expect("an answer"), Release::Released);
    assert_eq!(release(&ben, &its_turn(waiting).await).await.expect("an answer"), Release::Released);
}

/// Who is refused because of somebody else's request must not fail those that go with it, and one refused alone leaves nothing.
#[tokio::test]
async fn requests_that_go_together_are_answered_each() {
    let Some(stage) = Stage::new().await else { return };
    let ann = stage.client().await;
    let mut asked = JoinSet::new();
    for number in 0..300 {
        let ann = Arc::clone(&ann);
        // Every third name is one that two ask for.
        let name = format!("{NAME}/{}", number - usize::from(number % 3 == 0 && number > 0));
        let request = request_of(&name, Mode::Exclusive, LONG, Wait::No);
        asked.spawn(async move { ann.acquire(request).await });
    }
    let mut leases = Vec::new();
    let mut busy = 0;
    for answer in within("answers", asked.join_all()).await {
        match answer.expect("an answer") {
            Attempt::Granted(lease) => leases.push(lease),
            Attempt::Busy(_) => busy += 1,
        }
    }
    assert_eq!((leases.len(), busy), (201, 99));
    let keys: Vec<_> = leases.iter().map(|lease| lease.key.clone()).collect();
    assert!(ann.renew(&keys).await.expect("an answer").iter().all(|renewal| *renewal == Renewal::Renewed));
    assert!(ann.release(&keys).await.expect("an answer").iter().all(|release| *release == Release::Released));
    let again = granted(&ann, request(Mode::Exclusive, LONG, Wait::No)).await;
    release(&ann, &again).await.expect("an answer");
}

/// A waiter whose connections are ended again and again, be it while it joins, loses its place in line, and nothing else: it stands in line anew
/// until it has its turn.
async fn a_waiter_outlives_its_connections(params: &str) {
    const ENDS: &str =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'ann'";
    let Some(stage) = Stage::new().await else { return };
    let url = |who: &str| format!("{}{params}", named(&stage.server.url(), who));
    let (ann, ben) = (client(&url("ann")).await, client(&url("ben")).await);
    let held = granted(&ben, exclusive(Wait::No)).await;
    let (sender, mut turns) = mpsc::unbounded_channel();
    let mut axe = stage.server.session();
    let (mut waiters, mut ended) = (0, 0);
    while ended < 24 {
        if waiters < 10 {
            waiters += 1;
            join(&ann, sender.clone());
        }
        // It may warn of one that has ended by itself.
        let answer = axe.ask(ENDS).await;
        ended += answer.lines().next_back().and_then(|count| count.parse::<u32>().ok()).expect("a number");
        assert_eq!(renew(&ben, &held).await.expect("an answer"), Renewal::Renewed);
    }
    drop(sender);
    assert_eq!(release(&ben, &held).await.expect("an answer"), Release::Released);
    for _ in 0..waiters {
        let lease = within("the turn of one that waits", turns.recv()).await.expect("none of them gave up");
        assert!(lease.token.sequence() > held.token.sequence());
        // An answer that was asked for before the end may still be on its way; the lease ends all the same.
        release(&ann, &lease).await.expect("an answer");
    }
}

#[tokio::test]
async fn a_waiter_outlives_its_connections_where_leases_outlive_them() {
    a_waiter_outlives_its_connections("").await;
}

#[tokio::test]
async fn a_waiter_outlives_its_connections_where_leases_end_with_them() {
    a_waiter_outlives_its_connections("&reclaim=connection").await;
}

#[tokio::test]
async fn a_waiter_outlives_its_connections_in_the_servers_own_line() {
    a_waiter_outlives_its_connections("&recipe=advisory").await;
}
