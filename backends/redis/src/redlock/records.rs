//! Records on several nodes: a register behind a fence, of which a quorum of the nodes is the truth.
//!
//! Each node keeps a part: its mark, and what it was last told to keep, with the *ballot* of the token that told it. A token
//! first raises the marks of a quorum to itself, which from then on take nothing of a lower one. Then it looks at what they
//! keep, and has a quorum keep the newest of it under its own ballot: so what a stale writer may have left on a few nodes can
//! never come back after a later holder has opened the record and not seen it. Only then the record is open. A write is the
//! same without the first step: what a quorum has taken is written.
//!
//! A removal is a write of nothing. It stays with its mark, for good: a node that missed it keeps the old value, and nobody can
//! know that it is the older one if the others keep nothing.
//!
//! Two tokens with one ballot do not exist, but two writes of one token may be under way at a time. Their versions tell which
//! one is newer, and a number of their own does where both have the same.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::Value;
use ringfence_core::table::Refusal;
use ringfence_core::{
    Backoff, BoxFuture, Error, ErrorKind, FencedStore, FencingToken, ListQuery, Nonce, Opened, Page, Record,
    RecordKey, Result, Version,
};

use super::{EXAMINE_PATIENCE, PATIENCE_MOST, Redlock, RedlockBackend};
use crate::error;
use crate::keys;
use crate::records::{Fenced, handover, parse_record, parse_token};
use crate::scripts::{digits, text};
use crate::view;

/// How often a read tries again that meets an opening or a write that is under way.
const READS_MAX: usize = 8;
const READ_PAUSE_FIRST: Duration = Duration::from_millis(2);
const READ_PAUSE_MOST: Duration = Duration::from_millis(50);

/// What a node keeps of a record, or is to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    ballot: FencingToken,
    version: u64,
    /// Tells two writes of one version apart, and a removal from a write.
    write: String,
    /// `None` under version 0 and after a removal: that nothing is written has to be agreed on as well.
    record: Option<Record>,
}

/// What the write of a part begins with that was removed.
const REMOVED: &str = "removed-";

impl Part {
    /// Of two parts the one with the higher is newer.
    fn age(&self) -> (u64, u64, &str) {
        (self.ballot.sequence(), self.version, &self.write)
    }

    /// What a script answers: value, version, by, ballot, write. Nothing, where the node keeps no part of the record.
    fn parse(found: &Value, server: &str) -> Result<Option<Self>> {
        let part = || {
            let Value::Array(found) = found else { return None };
            let [_, version, _, ballot, write] = &found[..] else { return None };
            let version = text(version)?.parse().ok()?;
            let write = text(write)?.to_owned();
            let is_empty = version == 0 || write.starts_with(REMOVED);
            let record = if is_empty { None } else { parse_record(found)?.record };
            Some(Self { ballot: parse_token(text(ballot)?)?, version, write, record })
        };
        match found {
            Value::Array(found) if found.get(3) == Some(&Value::Nil) => Ok(None),
            found => part().map(Some).ok_or_else(|| error::odd_reply(found, server)),
        }
    }

    /// What the script is given: value, version, by, write.
    fn arguments(&self) -> [Vec<u8>; 4] {
        let (value, by) = match &self.record {
            Some(record) => (record.value.to_vec(), written(record.written_with)),
            // Nobody wrote it; this one said so.
            None => (Vec::new(), written(self.ballot)),
        };
        [value, self.version.to_string().into(), by.into(), self.write.clone().into()]
    }
}

/// A token as the script has it.
fn written(token: FencingToken) -> String {
    format!("{}:{}:{}", digits(token.nonce()), token.grant(), handover(token))
}

/// The newest of what a quorum keeps, and whether all of it is the same.
struct Newest {
    part: Option<Part>,
    is_agreed: bool,
}

impl Newest {
    fn of(parts: Vec<Option<Part>>) -> Self {
        let is_agreed = parts.windows(2).all(|pair| pair[0] == pair[1]);
        let part = parts.into_iter().flatten().max_by(|one, other| one.age().cmp(&other.age()));
        Self { part, is_agreed }
    }
}

impl Redlock {
    /// One step at a record on all nodes: the answers of a quorum that takes the token.
    ///
    /// Errors as the fence refuses where so many nodes do so that no quorum is left, and otherwise with
    /// [`ErrorKind::Unavailable`].
    async fn step(
        &self,
        verb: &'static str,
        key: &RecordKey,
        token: FencingToken,
        writes: &[Vec<u8>],
    ) -> Result<Vec<Vec<Value>>> {
        let nodes = &self.nodes;
        let needed = usize::from(nodes.quorum.needed());
        let spare = nodes.count() - needed;
        let step = Arc::new((key.clone(), self.keys.of_part(key), writes.to_vec()));
        let mut round = nodes.ask(nodes.every(), PATIENCE_MOST, |node| {
            let step = Arc::clone(&step);
            async move {
                let (key, part, writes) = &*step;
                let writes: Vec<&[u8]> = writes.iter().map(Vec::as_slice).collect();
                node.client.call_record(verb, key, part, Some(Fenced { token, writes: &writes })).await
            }
        });
        let (mut answers, mut refusals, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        while answers.len() < needed
            && failures.len() <= spare
            && let Some((_, answer)) = round.next().await
        {
            match answer {
                Ok(answer) => answers.push(answer),
                Err(error) if is_refusal(&error) => refusals.push(error),
                Err(error) => failures.push(error),
            }
        }
        if answers.len() >= needed {
            return Ok(answers);
        }
        match outvoted(refusals, spare) {
            Ok(refusal) => Err(refusal),
            Err(refusals) => {
                // They leave the others enough to agree, so they are not why there is no quorum.
                let silent = |refusal: Error| {
                    Error::new(ErrorKind::Unavailable, "it refuses the token").because(refusal)
                };
                failures.extend(refusals.into_iter().map(silent));
                Err(nodes.too_few(needed, failures).about(key))
            }
        }
    }

    /// The parts that a quorum keeps, each seen by a step of this kind.
    async fn parts(&self, verb: &'static str, key: &RecordKey, token: FencingToken) -> Result<Newest> {
        let answers = self.step(verb, key, token, &[]).await?;
        let about = key.to_string();
        let parts = answers.into_iter().map(|found| Part::parse(&Value::Array(found), &about));
        Ok(Newest::of(parts.collect::<Result<_>>()?))
    }

    /// Has a quorum keep a part under its ballot. `false`: the same token has had a newer one kept meanwhile.
    async fn keep(&self, verb: &'static str, key: &RecordKey, part: &Part) -> Result<bool> {
        let answers = self.step(verb, key, part.ballot, &part.arguments()).await;
        // What a few nodes took is kept or not, as the next opening finds it.
        let answers = answers.map_err(Error::with_unknown_effect)?;
        Ok(answers.iter().all(|answer| answer.first() == Some(&Value::Int(1))))
    }

    async fn open(&self, key: &RecordKey, token: FencingToken) -> Result<Opened> {
        loop {
            let Newest { part, is_agreed } = self.parts("open", key, token).await?;
            let part = match part {
                Some(part) if is_agreed && part.ballot == token => return Ok(Opened::new(part.record)),
                Some(part) => Part { ballot: token, ..part },
                None => Part { ballot: token, version: 0, write: String::new(), record: None },
            };
            if self.keep("accept", key, &part).await? {
                return Ok(Opened::new(part.record));
            }
        }
    }

    /// Writes a value, or that there is none any more.
    async fn write(&self, key: &RecordKey, token: FencingToken, value: Option<Bytes>) -> Result<Version> {
        let kind = if value.is_some() { "" } else { REMOVED };
        let write = format!("{kind}{}", digits(Nonce::random()));
        loop {
            let newest = self.parts("look", key, token).await?.part;
            let version = newest.map_or(0, |part| part.version) + 1;
            let record = value.clone().map(|value| Record::new(value, Version(version), token));
            let part = Part { ballot: token, version, write: write.clone(), record };
            if self.keep("accept", key, &part).await? {
                return Ok(Version(version));
            }
        }
    }

    /// The records of which a quorum keeps a value. One that is being written may be there or not.
    async fn list_records(&self, query: ListQuery) -> Result<Page<RecordKey>> {
        let asked = Arc::new(query.clone());
        let records = self.nodes.ask_quorum(EXAMINE_PATIENCE, |node| {
            let query = Arc::clone(&asked);
            async move { view::records(&node.client, &query, keys::PART).await }
        });
        // Whatever a quorum keeps is on one node at least of any other quorum.
        let records: BTreeSet<RecordKey> = records.await?.into_iter().flatten().collect();
        view::page_of_records(&query, records, |key| {
            Box::pin(async move { Ok(self.peek(&key).await?.part.is_some_and(|part| part.record.is_some())) })
        })
        .await
    }

    /// Reads without a token. What is not on a quorum yet is put there first, under the ballot that it has, so that no later
    /// read finds less.
    async fn read(&self, key: &RecordKey) -> Result<Option<Record>> {
        let mut backoff = Backoff::new(READ_PAUSE_FIRST, READ_PAUSE_MOST);
        let mut last = None;
        for _ in 0..READS_MAX {
            let Newest { part, is_agreed } = self.peek(key).await?;
            let Some(part) = part else { return Ok(None) };
            match if is_agreed { Ok(true) } else { self.keep("settle", key, &part).await } {
                Ok(true) => return Ok(part.record),
                Ok(false) => {}
                Err(error) if is_refusal(&error) => last = Some(error),
                Err(error) => return Err(error),
            }
            tokio::time::sleep(backoff.pause()).await;
        }
        let why = "an opening or a write of it is under way, or was cut short; read again, or have its next holder open it";
        let error = Error::new(ErrorKind::Unavailable, why).about(format_args!("record {key}"));
        Err(match last {
            Some(last) => error.because(last),
            None => error,
        })
    }

    /// What a quorum keeps, for anyone.
    async fn peek(&self, key: &RecordKey) -> Result<Newest> {
        let asked = Arc::new((key.clone(), self.keys.of_part(key)));
        let found = self.nodes.ask_quorum(PATIENCE_MOST, |node| {
            let asked = Arc::clone(&asked);
            async move {
                let (key, part) = &*asked;
                let found = node.client.call_record("read", key, part, None).await?;
                Part::parse(&Value::Array(found), node.client.servers.shown())
            }
        });
        Ok(Newest::of(found.await.map_err(|error| error.about(format_args!("record {key}")))?))
    }
}

/// Whether a node's fence says no.
fn is_refusal(error: &Error) -> bool {
    gravity(error) > 0
}

/// The gravest refusal that, with those that are graver, leaves no quorum of the other nodes; or all of them, where none does.
///
/// A node that has missed a grant, or not heard of an opening yet, refuses what the others take. So what it says is not told
/// unless as many say the same or worse as it takes to be right. Of those who say the same, the one with the highest mark tells most: a
/// node that has not heard of the later grant knows of none.
fn outvoted(mut refusals: Vec<Error>, spare: usize) -> std::result::Result<Error, Vec<Error>> {
    refusals.sort_by_key(|refusal| Reverse((gravity(refusal), refusal.mark().map(FencingToken::sequence))));
    let Some(gravest) = refusals.get(spare).map(gravity) else { return Err(refusals) };
    let told = refusals.iter().position(|refusal| gravity(refusal) == gravest).unwrap_or(spare);
    Ok(refusals.swap_remove(told))
}

/// Which of several refusals says more: the one with the higher.
fn gravity(error: &Error) -> u8 {
    match error.kind() {
        ErrorKind::TokenCollision => 3,
        ErrorKind::Stale => 2,
        ErrorKind::NotOpened => 1,
        _ => 0,
    }
}

impl FencedStore for RedlockBackend {
    fn open<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<Opened>> {
        Box::pin(self.redlock.open(key, token))
    }

    fn write<'a>(
        &'a self,
        key: &'a RecordKey,
        token: FencingToken,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Version>> {
        Box::pin(async move {
            Refusal::of_size(&value).map_err(|refusal| refusal.into_error(key, token))?;
            self.redlock.write(key, token, Some(value)).await
        })
    }

    fn remove<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.redlock.write(key, token, None).await.map(drop) })
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<RecordKey>>> {
        Box::pin(self.redlock.list_records(query))
    }

    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>> {
        Box::pin(self.redlock.read(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(sequence: u64) -> FencingToken {
        FencingToken::new(sequence, Nonce::random()).unwrap()
    }

    /// What a node says that knows of this mark, or of the end of the lease alone.
    fn stale(mark: Option<u64>) -> Error {
        let key = RecordKey::of("orders".parse().unwrap());
        let refusal = mark.map_or(Refusal::LeaseOver(None), |mark| Refusal::BelowMark(token(mark)));
        refusal.into_error(&key, token(1 << 20))
    }

    #[test]
    fn who_is_outvoted_is_told_the_highest_mark_whoever_answers_last() {
        let marks = [Some(3 << 20), None, Some(2 << 20), None];
        for first in 0..marks.len() {
            let said = marks.iter().cycle().skip(first).take(3).map(|mark| stale(*mark)).collect();
            let told = outvoted(said, 2).unwrap().mark().map(FencingToken::sequence);
            let highest = marks.iter().cycle().skip(first).take(3).max().unwrap();
            assert_eq!(told, *highest);
        }
        assert_eq!(outvoted(vec![stale(None), stale(None)], 2).unwrap_err().len(), 2);
    }

    #[test]
    fn what_two_nodes_say_alone_is_not_told_where_three_say_less() {
        let key = RecordKey::of("orders".parse().unwrap());
        let collision = || Refusal::Collision(token(9 << 20)).into_error(&key, token(1 << 20));
        let told = outvoted(vec![collision(), stale(None), collision()], 2).unwrap();
        assert_eq!(told.kind(), ErrorKind::Stale);
        let told = outvoted(vec![collision(), collision(), collision()], 2).unwrap();
        assert_eq!(told.kind(), ErrorKind::TokenCollision);
    }
}
