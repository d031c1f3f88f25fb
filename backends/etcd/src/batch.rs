//! Several changes of one process in one replicated write.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use foldhash::fast::RandomState;
use ringfence_core::{BoxFuture, Coalescer, Effect, Error, ErrorKind, LockName, Result};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::error;
use crate::ops;
use crate::proto::request_op::Request;
use crate::proto::response_op::Response;
use crate::proto::{RangeRequest, RangeResponse, RequestOp, ResponseOp, TxnRequest, TxnResponse};
use crate::servers::Servers;

pub(crate) const RANGE: &str = "/etcdserverpb.KV/Range";
pub(crate) const DELETE_RANGE: &str = "/etcdserverpb.KV/DeleteRange";
pub(crate) const TXN: &str = "/etcdserverpb.KV/Txn";

/// How many batches are under way at a time.
const FLIGHTS: usize = 2;

/// How many changes go together. A server takes 128 operations in one transaction, of all levels, unless it was told otherwise.
const BATCH: usize = 64;

/// One change of one lock, and what is to be known of it.
struct Change {
    name: LockName,
    txn: TxnRequest,
}

/// How many keys are looked at together. A server takes 128 operations, unless it was told otherwise.
const LOOKS: usize = 128;

/// Changes of one process share transactions: the first goes at once, what comes meanwhile goes together in the next. So do looks
/// at keys, apart from them, because they write nothing.
///
/// A change that the server refuses takes no other with it: then each goes for itself.
#[derive(Debug)]
pub(crate) struct Batch {
    changes: Coalescer<Change, Result<TxnResponse>>,
    looks: Coalescer<Vec<u8>, Result<i64>>,
}

impl Batch {
    pub(crate) fn new(servers: Arc<Servers>, runtime: Handle) -> Self {
        let (looking, adopting) = (Arc::clone(&servers), runtime.clone());
        let send = move |changes| Box::pin(send_all(Arc::clone(&servers), changes)) as BoxFuture<'static, _>;
        let look = move |keys| Box::pin(look_at_all(Arc::clone(&looking), keys)) as BoxFuture<'static, _>;
        Self {
            changes: Coalescer::new(FLIGHTS, BATCH, send, move |changes| drop(adopting.spawn(changes))),
            looks: Coalescer::new(FLIGHTS, LOOKS, look, move |looks| drop(runtime.spawn(looks))),
        }
    }

    /// The revision at which a key was created; zero if it is not there.
    pub(crate) async fn look(&self, key: Vec<u8>) -> Result<i64> {
        self.looks.request(key).await.unwrap_or_else(|| Err(shutting_down()))
    }

    /// Makes a change of a lock.
    pub(crate) async fn change(&self, name: &LockName, txn: TxnRequest) -> Result<TxnResponse> {
        let made = self.changes.request(Change { name: name.clone(), txn }).await;
        made.unwrap_or_else(|| Err(shutting_down().with_unknown_effect()))
    }
}

fn shutting_down() -> Error {
    let why = "the round trip ended without an answer, because the program is shutting down";
    Error::new(ErrorKind::Unavailable, why)
}

async fn look_at_all(servers: Arc<Servers>, keys: Vec<Vec<u8>>) -> Vec<Result<i64>> {
    let success = keys.iter().map(|key| ops::range(look_at(key))).collect();
    let question = TxnRequest { success, ..TxnRequest::default() };
    let seen: Result<TxnResponse> = servers.call(TXN, &question).await;
    match seen.map_err(Error::without_effect) {
        Ok(answer) => {
            let odd = || error::odd_answer("not as many keys as were asked for", servers.shown());
            (0..keys.len()).map(|index| Ok(created(ops::found(&answer, index).ok_or_else(odd)?))).collect()
        }
        // It refuses the transaction, and no other read: before version 3.5.7 a member whose database is full, and one that was told to
        // take fewer operations at once (--max-txn-ops).
        Err(error) if matches!(error.kind(), ErrorKind::Full | ErrorKind::Corrupt) => {
            let mut looking = JoinSet::new();
            for (place, key) in keys.into_iter().enumerate() {
                let servers = Arc::clone(&servers);
                looking.spawn(async move {
                    let seen: Result<RangeResponse> = servers.call(RANGE, &look_at(&key)).await;
                    (place, seen.map(|found| created(&found)).map_err(Error::without_effect))
                });
            }
            let mut seen = looking.join_all().await;
            seen.sort_by_key(|(place, _)| *place);
            seen.into_iter().map(|(_, created)| created).collect()
        }
        Err(error) => keys.iter().map(|_| Err(error.clone())).collect(),
    }
}

fn look_at(key: &[u8]) -> RangeRequest {
    RangeRequest { keys_only: true, ..ops::get(key) }
}

fn created(found: &RangeResponse) -> i64 {
    found.kvs.first().map_or(0, |found| found.create_revision)
}

/// Sends changes, and returns the answer of each.
async fn send_all(servers: Arc<Servers>, changes: Vec<Change>) -> Vec<Result<TxnResponse>> {
    let mut answers: Vec<Option<Result<TxnResponse>>> = changes.iter().map(|_| None).collect();
    // All keys of one transaction are created at one revision, so that it can hold one change of a lock: nobody could say which
    // of two came first.
    let mut seen: HashMap<LockName, usize, RandomState> = HashMap::default();
    let (mut first, mut later) = (Vec::with_capacity(changes.len()), Vec::<Vec<_>>::new());
    for (place, Change { name, txn }) in changes.into_iter().enumerate() {
        let before = seen.entry(name).or_default();
        match *before {
            0 => first.push((place, txn)),
            before if before > later.len() => later.push(vec![(place, txn)]),
            before => later[before - 1].push((place, txn)),
        }
        *before += 1;
    }
    let mut under_way: JoinSet<_> =
        later.into_iter().map(|changes| send_together(Arc::clone(&servers), changes)).collect();
    let mut answered = send_together(servers, first).await;
    while let Some(sent) = under_way.join_next().await {
        answered.extend(sent.into_iter().flatten());
    }
    for (place, answer) in answered {
        answers[place] = Some(answer);
    }
    let bug = || Err(Error::new(ErrorKind::Bug, "a change panicked on its way").with_unknown_effect());
    answers.into_iter().map(|answer| answer.unwrap_or_else(bug)).collect()
}

async fn send_together(
    servers: Arc<Servers>,
    mut changes: Vec<(usize, TxnRequest)>,
) -> Vec<(usize, Result<TxnResponse>)> {
    if let [(place, change)] = &changes[..] {
        return vec![(*place, Box::pin(send_alone(&servers, change)).await)];
    }
    let success = changes.iter_mut().map(|(_, change)| ops::txn(mem::take(change))).collect();
    let together = TxnRequest { success, ..TxnRequest::default() };
    let places = changes.iter().map(|(place, _)| *place);
    match servers.call::<TxnResponse>(TXN, &together).await {
        Ok(TxnResponse { header, responses, .. }) => {
            let mut parts = responses.into_iter().map(ops::into_nested);
            let each = places.map(|place| {
                let made = parts.next().flatten().map(|made| TxnResponse { header, ..made });
                let odd = || error::odd_answer("a batch without its parts", servers.shown());
                (place, made.ok_or_else(odd))
            });
            each.collect()
        }
        // Nobody knows whose fault it was, and nothing was done.
        Err(error) if error.effect() == Effect::None && error.kind() != ErrorKind::Unavailable => {
            let mut alone = JoinSet::new();
            for (place, change) in places.zip(together.success.into_iter().filter_map(ops::into_txn)) {
                let servers = Arc::clone(&servers);
                alone.spawn(async move { (place, send_alone(&servers, &change).await) });
            }
            alone.join_all().await
        }
        Err(error) => places.map(|place| (place, Err(error.clone()))).collect(),
    }
}

/// Sends a change for itself. A mere deletion is no transaction, for each of which version 3.4 copies what was written in the last
/// tenth of a second.
async fn send_alone(servers: &Servers, change: &TxnRequest) -> Result<TxnResponse> {
    let [RequestOp { request: Some(Request::Delete(deletion)) }] = &change.success[..] else {
        return servers.call(TXN, change).await;
    };
    if !change.compare.is_empty() {
        return servers.call(TXN, change).await;
    }
    let deleted = servers.call(DELETE_RANGE, deletion).await?;
    let responses = vec![ResponseOp { response: Some(Response::Delete(deleted)) }];
    Ok(TxnResponse { succeeded: true, responses, ..TxnResponse::default() })
}
