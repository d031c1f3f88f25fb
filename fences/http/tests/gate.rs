//! The gate before a service whose answers the test gives: in which order requests pass, and which never do.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Empty};
use ringfence::{
    BoxFuture, FencedStore, FencingToken, Guard, ListQuery, Locks, Nonce, Opened, Page, Record, RecordKey,
    Result, Version, WallTime,
};
use ringfence_core::TokenKey;
use ringfence_http::{
    Epochs, FenceLayer, Fenced, FencedBody, Gate, PassedBody, Reset, TOKEN_HEADER, TokenHeader,
};
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower_layer::Layer;
use tower_service::Service;

/// What should come at once, comes within this on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// A drain that no test waits for.
const LONG: Duration = Duration::from_hours(1);
/// What is to wait, has to be seen waiting for so long.
const A_WHILE: Duration = Duration::from_millis(100);

type Answer = Channel<Bytes, Infallible>;

/// A request that reached the resource.
struct Arrived {
    token: FencingToken,
    answer: oneshot::Sender<Answer>,
    /// The request's body, and with it its pass: gone when the answer is asked for.
    _body: PassedBody<Empty<Bytes>>,
}

impl Arrived {
    /// Begins the answer, whose body goes on until the sender is dropped.
    fn answers(self) -> Sender<Bytes> {
        let (sender, body) = Channel::new(1);
        self.answer.send(body).expect("the gate still waits for the answer");
        sender
    }
}

/// The resource: tells the test of every request, and answers when the test does.
#[derive(Clone)]
struct Resource(mpsc::UnboundedSender<Arrived>);

impl Service<Request<PassedBody<Empty<Bytes>>>> for Resource {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Response<Answer>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<PassedBody<Empty<Bytes>>>) -> Self::Future {
        let (answer, answered) = oneshot::channel();
        let token = request.extensions().get::<TokenHeader>().expect("the handler finds it").token().token();
        self.0.send(Arrived { token, answer, _body: request.into_body() }).expect("the test listens");
        Box::pin(async move { Ok(Response::new(answered.await.expect("the test answers"))) })
    }
}

/// A gate before the resource.
struct Stage {
    service: Fenced<Resource>,
    arrivals: mpsc::UnboundedReceiver<Arrived>,
}

impl Stage {
    fn new(gate: impl Into<Arc<Gate>>) -> Self {
        let (sender, arrivals) = mpsc::unbounded_channel();
        Self { service: FenceLayer::new(gate).layer(Resource(sender)), arrivals }
    }

    /// Sends a request with these headers.
    fn sends(&self, headers: &[&str]) -> JoinHandle<Response<FencedBody<Answer>>> {
        let mut request = Request::new(Empty::new());
        for header in headers {
            request.headers_mut().append(TOKEN_HEADER, header.parse().unwrap());
        }
        let mut service = self.service.clone();
        tokio::spawn(async move { service.call(request).await.unwrap() })
    }

    /// Sends a request with a token of the lock `a`.
    fn sends_token(&self, token: FencingToken) -> JoinHandle<Response<FencedBody<Answer>>> {
        self.sends(&[&format!("a;{token}")])
    }

    async fn arrival(&mut self) -> Arrived {
        timeout(PATIENCE, self.arrivals.recv()).await.expect("a request arrives").unwrap()
    }

    async fn nothing_arrives(&mut self) {
        if let Ok(arrived) = timeout(A_WHILE, self.arrivals.recv()).await {
            panic!("{} arrived, which has to wait or was refused", arrived.unwrap().token);
        }
    }
}

/// A refusal as the client reads it.
async fn refused(response: JoinHandle<Response<FencedBody<Answer>>>) -> (StatusCode, Value) {
    let response = timeout(PATIENCE, response).await.expect("a refusal comes at once").unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    let status = response.status();
    (status, serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap())
}

/// Locks of a store that checks only the mark, so that any token is a holder's.
async fn store() -> (tempfile::TempDir, Locks) {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("local:{}/store?fence=mark", directory.path().display());
    let locks = Locks::connect(&url).await.unwrap();
    (directory, locks)
}

fn token(sequence: u64) -> FencingToken {
    FencingToken::new(sequence, Nonce::from_u64(sequence).unwrap()).unwrap()
}

#[tokio::test]
async fn without_a_token_nothing_passes() {
    let (_directory, locks) = store().await;
    let mut stage = Stage::new(Gate::new(Arc::new(locks)));
    let (status, body) = refused(stage.sends(&[])).await;
    assert_eq!((status.as_u16(), &body["error"]), (428, &json!("missing")));
    for headers in [&["nonsense"][..], &["a;1.1", "a;1.1"], &["a;1.1, a;2.2"]] {
        let (status, body) = refused(stage.sends(headers)).await;
        assert_eq!((status.as_u16(), &body["error"]), (400, &json!("malformed")), "{headers:?}");
    }
    stage.nothing_arrives().await;
}

#[tokio::test]
async fn an_older_token_than_the_highest_seen_is_told_the_mark() {
    let (_directory, locks) = store().await;
    let mut stage = Stage::new(Gate::new(Arc::new(locks)));
    for sequence in [5, 5, 7] {
        let sent = stage.sends_token(token(sequence));
        let arrived = stage.arrival().await;
        assert_eq!(arrived.token, token(sequence));
        drop(arrived.answers());
        assert_eq!(sent.await.unwrap().status(), 200);
    }
    let (status, mut body) = refused(stage.sends_token(token(6))).await;
    let said = body["message"].take();
    assert!(said.as_str().unwrap().contains("token 6.6 is stale"), "{said}");
    assert_eq!(status, 412);
    assert_eq!(body, json!({"error": "stale", "message": null, "name": "a", "token": "6.6", "mark": 7}));
    let twin = FencingToken::new(7, Nonce::from_u64(8).unwrap()).unwrap();
    let (status, body) = refused(stage.sends_token(twin)).await;
    assert_eq!((status.as_u16(), &body["error"], &body["mark"]), (412, &json!("collision"), &json!(7)));
    stage.nothing_arrives().await;
    // Another resource has another mark.
    drop(stage.sends(&["b;6.6"]));
    assert_eq!(stage.arrival().await.token, token(6));
}

#[tokio::test]
async fn a_token_whose_lease_is_over_is_refused_where_the_store_knows() {
    let directory = tempfile::tempdir().unwrap();
    let locks = Locks::connect(&format!("local:{}/store", directory.path().display())).await.unwrap();
    let guard: Guard = locks.lock("a").acquire().await.unwrap();
    let mut stage = Stage::new(Gate::new(Arc::new(locks)));
    let sent = stage.sends_token(guard.token());
    drop(stage.arrival().await.answers());
    assert_eq!(sent.await.unwrap().status(), 200);
    let late = guard.token();
    guard.release().await.unwrap();
    let (status, body) = refused(stage.sends_token(late)).await;
    assert_eq!((status.as_u16(), &body["error"]), (412, &json!("stale")));
    assert_eq!(body["mark"], json!(null), "no later token was seen");
}

#[tokio::test]
async fn a_newer_token_waits_until_the_older_ones_are_answered_to_the_end() {
    let (_directory, locks) = store().await;
    let mut stage = Stage::new(Gate::new(Arc::new(locks)).drain(LONG));
    let old = stage.sends_token(token(5));
    let first_arrived = stage.arrival().await;
    let second = stage.sends_token(token(5));
    let second_arrived = stage.arrival().await;
    let _new = stage.sends_token(token(7));
    stage.nothing_arrives().await;
    let (status, body) = refused(stage.sends_token(token(5))).await;
    assert_eq!((status.as_u16(), &body["mark"]), (412, &json!(7)), "the mark is raised before the wait");

    drop(first_arrived.answers());
    drop(old.await.unwrap());
    stage.nothing_arrives().await;
    let answering = second_arrived.answers();
    let answer = second.await.unwrap();
    stage.nothing_arrives().await;
    drop(answering);
    answer.into_body().collect().await.expect("it was not cut");
    assert_eq!(stage.arrival().await.token, token(7));
}

#[tokio::test]
async fn after_the_drain_the_older_ones_are_cut_and_the_newer_passes() {
    let (_directory, locks) = store().await;
    let mut stage = Stage::new(Gate::new(Arc::new(locks)).drain(A_WHILE));
    let unanswered = stage.sends_token(token(5));
    let first_arrived = stage.arrival().await;
    let begun = stage.sends_token(token(5));
    let mut answering = stage.arrival().await.answers();
    answering.send_data(Bytes::from("half")).await.unwrap();
    let mut body = begun.await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");

    let _new = stage.sends_token(token(7));
    let cut = timeout(PATIENCE, body.frame()).await.expect("the answer is cut").unwrap().unwrap_err();
    assert!(cut.to_string().contains("cut for a later token"), "{cut}");
    assert!(stage.arrivals.try_recv().is_err(), "the newer one waits until what was cut lets go");
    let (status, refusal) = refused(unanswered).await;
    assert_eq!(
        (status.as_u16(), &refusal["error"], &refusal["token"]),
        (412, &json!("stale"), &json!("5.5"))
    );
    drop((body, first_arrived));
    assert_eq!(stage.arrival().await.token, token(7));
}

#[tokio::test]
async fn one_that_is_cut_and_cannot_let_go_holds_nobody_up() {
    let (_directory, locks) = store().await;
    let mut stage = Stage::new(Gate::new(Arc::new(locks)).drain(Duration::ZERO));
    let begun = stage.sends_token(token(5));
    let answering = stage.arrival().await.answers();
    // A client that reads nothing: nobody looks at the body.
    let unread = begun.await.unwrap();
    let _new = stage.sends_token(token(7));
    assert_eq!(stage.arrival().await.token, token(7));
    drop((unread, answering));
}

#[tokio::test]
async fn one_that_waits_is_refused_when_a_newer_one_comes() {
    let (_directory, locks) = store().await;
    let mut stage = Stage::new(Gate::new(Arc::new(locks)).drain(LONG));
    let _old = stage.sends_token(token(5));
    let arrived = stage.arrival().await;
    let waiting = stage.sends_token(token(7));
    stage.nothing_arrives().await;
    let _newest = stage.sends_token(token(9));
    let (status, body) = refused(waiting).await;
    assert_eq!((status.as_u16(), &body["mark"]), (412, &json!(9)));
    drop(arrived);
    assert_eq!(stage.arrival().await.token, token(9));
}

#[tokio::test]
async fn a_client_that_goes_away_holds_nobody_up() {
    let (_directory, locks) = store().await;
    let mut stage = Stage::new(Gate::new(Arc::new(locks)).drain(LONG));
    let old = stage.sends_token(token(5));
    let arrived = stage.arrival().await;
    let _new = stage.sends_token(token(7));
    stage.nothing_arrives().await;
    old.abort();
    drop(arrived);
    assert_eq!(stage.arrival().await.token, token(7));
}

#[tokio::test]
async fn two_gates_on_one_store_have_one_mark() {
    let (_directory, locks) = store().await;
    let store = Arc::new(locks);
    let (mut one, mut two) = (Stage::new(Gate::new(store.clone())), Stage::new(Gate::new(store)));
    let _old = one.sends_token(token(5));
    drop(one.arrival().await);
    let _new = two.sends_token(token(7));
    drop(two.arrival().await);
    let (status, body) = refused(one.sends_token(token(5))).await;
    assert_eq!((status.as_u16(), &body["mark"]), (412, &json!(7)));
    one.nothing_arrives().await;
}

#[tokio::test]
async fn one_that_has_waited_is_refused_if_a_newer_one_passed_at_another_gate() {
    let (_directory, locks) = store().await;
    let store = Arc::new(locks);
    let mut one = Stage::new(Gate::new(store.clone()).drain(LONG));
    let mut two = Stage::new(Gate::new(store));
    let _old = one.sends_token(token(5));
    let arrived = one.arrival().await;
    let waiting = one.sends_token(token(7));
    one.nothing_arrives().await;
    let _newest = two.sends_token(token(9));
    drop(two.arrival().await);
    drop(arrived);
    let (status, body) = refused(waiting).await;
    assert_eq!((status.as_u16(), &body["mark"]), (412, &json!(9)));
}

/// A real store, with what a test needs to know of it and to do to it.
struct Watched {
    locks: Locks,
    opened: AtomicUsize,
    /// The next answer to an opening is held up while the test has this.
    slow: AtomicBool,
    gate: Mutex<()>,
}

impl Watched {
    fn new(locks: Locks) -> Arc<Self> {
        Arc::new(Self {
            locks,
            opened: AtomicUsize::new(0),
            slow: AtomicBool::new(false),
            gate: Mutex::new(()),
        })
    }
}

impl FencedStore for Watched {
    fn open<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<Opened>> {
        Box::pin(async move {
            let slow = self.slow.swap(false, Ordering::SeqCst);
            let opened = self.locks.records().open(key, token).await;
            self.opened.fetch_add(1, Ordering::SeqCst);
            if slow {
                drop(self.gate.lock().await);
            }
            opened
        })
    }

    fn write<'a>(
        &'a self,
        key: &'a RecordKey,
        token: FencingToken,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Version>> {
        self.locks.records().write(key, token, value)
    }

    fn remove<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<()>> {
        self.locks.records().remove(key, token)
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<RecordKey>>> {
        self.locks.records().list(query)
    }

    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>> {
        self.locks.records().read(key)
    }
}

#[tokio::test]
async fn a_late_answer_of_the_store_lets_nothing_old_through() {
    let (_directory, locks) = store().await;
    let store = Watched::new(locks);
    let mut stage = Stage::new(Gate::new(store.clone()).drain(LONG));
    let held_up = store.gate.lock().await;
    store.slow.store(true, Ordering::SeqCst);
    let old = stage.sends_token(token(5));
    while store.opened.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let _new = stage.sends_token(token(7));
    drop(stage.arrival().await);
    drop(held_up);
    let (status, body) = refused(old).await;
    assert_eq!((status.as_u16(), &body["error"], &body["mark"]), (412, &json!("stale"), &json!(7)));
    stage.nothing_arrives().await;
}

#[tokio::test]
async fn requests_that_come_while_the_store_is_asked_share_a_question_and_none_that_was_asked_before() {
    let (_directory, locks) = store().await;
    let store = Watched::new(locks);
    let mut stage = Stage::new(Gate::new(store.clone()));
    let asked = || store.opened.load(Ordering::SeqCst);
    let held_up = store.gate.lock().await;
    // As many as may be asked at a time.
    let mut sent = Vec::new();
    for number in 1..=2 {
        store.slow.store(true, Ordering::SeqCst);
        sent.push(stage.sends_token(token(5)));
        while asked() < number {
            tokio::task::yield_now().await;
        }
    }
    for _ in 0..20 {
        sent.push(stage.sends_token(token(5)));
    }
    stage.nothing_arrives().await;
    assert_eq!(asked(), 2);
    drop(held_up);
    for _ in 0..22 {
        drop(stage.arrival().await.answers());
    }
    for answer in sent {
        assert_eq!(answer.await.unwrap().status(), 200);
    }
    assert!((3..=4).contains(&asked()), "asked {} times: once more in place of each of the 2", asked());
    // What was asked before a request came says nothing of it.
    let key = RecordKey::new("a".parse().unwrap(), "gate").unwrap();
    store.open(&key, token(7)).await.unwrap();
    let (status, body) = refused(stage.sends_token(token(5))).await;
    assert_eq!((status.as_u16(), &body["mark"]), (412, &json!(7)));
}

#[tokio::test]
async fn alone_it_asks_once_for_each_token_and_lease_and_else_nothing_passes() {
    let (_directory, locks) = store().await;
    let store = Watched::new(locks);
    let lease = Arc::new(std::sync::Mutex::new(None));
    let gate = Gate::new(store.clone()).alone({
        let lease = Arc::clone(&lease);
        move || *lease.lock().unwrap()
    });
    let mut stage = Stage::new(gate);
    let (status, body) = refused(stage.sends_token(token(5))).await;
    assert_eq!((status.as_u16(), &body["error"]), (503, &json!("standing_by")));
    let mut passes = async |sequence, asked: usize| {
        let sent = stage.sends_token(token(sequence));
        drop(stage.arrival().await.answers());
        drop(sent.await.unwrap());
        assert_eq!(store.opened.load(Ordering::SeqCst), asked, "token {sequence}");
    };
    *lease.lock().unwrap() = Some(token(100));
    passes(5, 1).await;
    passes(5, 1).await;
    passes(7, 2).await;
    passes(7, 2).await;
    *lease.lock().unwrap() = Some(token(101));
    passes(7, 3).await;
    // Another gate was alone, and let a newer one through.
    *lease.lock().unwrap() = Some(token(102));
    let key = RecordKey::new("a".parse().unwrap(), "gate").unwrap();
    store.open(&key, token(9)).await.unwrap();
    let (status, body) = refused(stage.sends_token(token(7))).await;
    assert_eq!((status.as_u16(), &body["mark"]), (412, &json!(9)));
}

#[tokio::test]
async fn a_lease_that_ends_while_the_store_is_asked_lets_nothing_through() {
    let (_directory, locks) = store().await;
    let store = Watched::new(locks);
    let alone = Arc::new(AtomicBool::new(true));
    let gate = Gate::new(store.clone()).alone({
        let alone = Arc::clone(&alone);
        move || alone.load(Ordering::SeqCst).then(|| token(100))
    });
    let mut stage = Stage::new(gate);
    let held_up = store.gate.lock().await;
    store.slow.store(true, Ordering::SeqCst);
    let sent = stage.sends_token(token(5));
    while store.opened.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    alone.store(false, Ordering::SeqCst);
    drop(held_up);
    let (status, body) = refused(sent).await;
    assert_eq!((status.as_u16(), &body["error"]), (503, &json!("standing_by")));
    stage.nothing_arrives().await;
}

#[tokio::test]
async fn what_has_passed_is_cut_when_the_gate_says_so_and_what_comes_then_is_not() {
    let (_directory, locks) = store().await;
    let gate = Arc::new(Gate::new(Arc::new(locks)).drain(LONG));
    let mut stage = Stage::new(Arc::clone(&gate));
    let sent = stage.sends_token(token(5));
    let arrived = stage.arrival().await;
    gate.cut();
    let (status, _) = refused(sent).await;
    assert_eq!(status, 412);
    let again = stage.sends_token(token(5));
    let second = stage.arrival().await;
    drop(arrived);
    drop(second.answers());
    assert_eq!(again.await.unwrap().status(), 200);
}

#[tokio::test]
async fn with_a_key_a_forged_token_shuts_nobody_out() {
    let (_directory, locks) = store().await;
    let key = TokenKey::new(&[7; 32]).unwrap();
    let mut stage = Stage::new(Gate::new(Arc::new(locks)).key(key.clone()));
    let forged = FencingToken::new((1 << 63) - 1, Nonce::random()).unwrap();
    let other_key = TokenKey::new(&[8; 32]).unwrap().seal(&"a".parse().unwrap(), forged).reveal();
    let other_lock = key.seal(&"b".parse().unwrap(), forged).reveal();
    for shown in [forged.to_string(), other_key, other_lock] {
        let (status, body) = refused(stage.sends(&[&format!("a;{shown}")])).await;
        assert_eq!((status.as_u16(), &body["error"]), (403, &json!("forged")));
        let mac = shown.splitn(3, '.').nth(2).unwrap_or("there is none");
        assert!(!body.to_string().contains(mac), "{body}");
    }
    let sealed = key.seal(&"a".parse().unwrap(), token(5)).reveal();
    let _sent = stage.sends(&[&format!("a;{sealed}")]);
    assert_eq!(stage.arrival().await.token, token(5));
}

/// An operator starts the mark of the lock `a` anew.
async fn reset(locks: &Locks, seed: bool) -> Reset {
    let guard = locks.lock("a").acquire().await.unwrap();
    let reset = Reset { at: WallTime::from_millis(7), by: "ann".into(), why: "a drill".into(), mark: None };
    let done = Epochs::reset(locks.records(), guard.name(), guard.token(), seed, reset).await.unwrap();
    guard.release().await.unwrap();
    done
}

#[tokio::test]
async fn a_mark_that_was_started_anew_is_noticed_at_the_next_refusal() {
    let (_directory, locks) = store().await;
    let store = Watched::new(locks.clone());
    for alone in [false, true] {
        let mut gate = Gate::new(store.clone());
        if alone {
            gate = gate.alone(|| Some(token(100)));
        }
        let mut stage = Stage::new(gate);
        let huge = FencingToken::new((1 << 63) - 1, Nonce::from_u64(1).unwrap()).unwrap();
        let sent = stage.sends_token(huge);
        drop(stage.arrival().await.answers());
        drop(sent.await.unwrap());
        assert_eq!(refused(stage.sends_token(token(6))).await.0, 412);
        assert_eq!(reset(&locks, false).await.mark, Some(huge));
        let _sent = stage.sends_token(token(6));
        assert_eq!(stage.arrival().await.token, token(6), "alone: {alone}");
    }
    let epochs = Epochs::read(locks.records(), &"a".parse().unwrap()).await.unwrap();
    assert_eq!((epochs.epoch, epochs.resets.len()), (2, 2));
}

#[tokio::test]
async fn a_mark_that_was_started_anew_is_noticed_within_a_second_or_so() {
    let (_directory, locks) = store().await;
    for alone in [false, true] {
        let mut gate = Gate::new(Arc::new(locks.clone()));
        if alone {
            gate = gate.alone(|| Some(token(100)));
        }
        let mut stage = Stage::new(gate);
        let guard = locks.lock("a").acquire().await.unwrap();
        let (name, old) = (guard.name().clone(), guard.token());
        guard.release().await.unwrap();
        // Somebody is near all the time, so that the gate has no reason to forget.
        let _near = stage.sends_token(old);
        let _arrived = stage.arrival().await;
        let mut passes = true;
        assert_eq!(ringfence_http::mark(locks.records(), &name, u64::from(alone)).await.unwrap(), Some(old));
        reset(&locks, true).await;
        let look = async {
            while passes {
                let sent = stage.sends_token(old);
                tokio::select! {
                    arrived = stage.arrival() => drop(arrived.answers()),
                    refused = refused(sent) => passes = refused.0 != 412,
                }
            }
        };
        timeout(PATIENCE, look).await.expect("what was granted before the reset is refused");
    }
}

#[tokio::test]
async fn what_the_store_let_through_before_the_mark_was_started_anew_counts_for_nothing_after() {
    let (_directory, locks) = store().await;
    let store = Watched::new(locks.clone());
    let mut stage = Stage::new(Gate::new(store.clone()));
    let guard = locks.lock("a").acquire().await.unwrap();
    let old = guard.token();
    guard.release().await.unwrap();
    let held_up = store.gate.lock().await;
    store.slow.store(true, Ordering::SeqCst);
    let late = stage.sends_token(old);
    while store.opened.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(reset(&locks, true).await.mark, Some(old));
    // One that is refused makes the gate look.
    assert_eq!(refused(stage.sends_token(token(1))).await.0, 412);
    drop(held_up);
    let (status, body) = refused(late).await;
    assert_eq!((status.as_u16(), &body["error"]), (412, &json!("stale")));
    assert!(body["mark"].as_u64().unwrap() > old.sequence(), "{body}");
    stage.nothing_arrives().await;
}

#[tokio::test]
async fn the_list_of_resets_has_a_limit() {
    let (_directory, locks) = store().await;
    for _ in 0..34 {
        reset(&locks, true).await;
    }
    let epochs = Epochs::read(locks.records(), &"a".parse().unwrap()).await.unwrap();
    assert_eq!((epochs.epoch, epochs.resets.len()), (34, 32));
}
