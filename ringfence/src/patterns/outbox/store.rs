//! What a relay and an operator ask of the database: claims, what became of a batch, what is there.
//!
//! Nobody sends what is in a lane but the relay that has claimed it. A claim has a token, which is higher than that of every claim
//! before, and an end. Whatever a relay says of its batch is said together with the lane's row, and only while that has its token:
//! one that was paused past its claim's end, so that another has claimed the lane, says nothing any more.

use std::time::Duration;

use serde::Serialize;

use super::database::{Connection, Place, Row, Value};
use super::message::{Delivery, MessageId};
use crate::{Error, ErrorKind, Result, WallTime};

/// How many messages `status` names, of those that wait and of the dead.
const NAMED_MAX: i64 = 100;

/// What may be sent of a lane now: not what is dead, and of no key whose first message waits for its next try.
const DUE: &str = "m.dead_at IS NULL AND (m.retry_at IS NULL OR m.retry_at <= @now@) AND NOT EXISTS (
    SELECT 1 FROM @messages@ b WHERE b.key = m.key AND b.retry_at > @now@ AND b.dead_at IS NULL)";

/// A lane that this relay has, what it is to send, and the token under which it does.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) lane: i64,
    pub(super) token: i64,
    /// In the order of their numbers.
    pub(super) deliveries: Vec<Delivery>,
}

/// What became of a batch. What it does not name stays as it was.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) delivered: Vec<u64>,
    pub(super) failed: Vec<Failed>,
}

/// A message that was not taken.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub(super) number: u64,
    pub(super) why: String,
    pub(super) then: Then,
}

/// What happens to it next. Only a sink that answered has refused it; one that is not there has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Retry { after: Duration, is_refused: bool },
    Dead,
}

/// Whether there is something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Work,
    /// What waits is due in so long, if anything does.
    Nothing(Option<Duration>),
}

/// A text in a statement that stands alone: only such a one needs no values, and so one message to a pooler.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A look at the outbox, before anything is written. One round trip, or two.
pub(super) async fn look(place: &Place, connection: &mut dyn Connection) -> Result<Look> {
    let clock = literal(&place.kind().clock()?);
    let free = format!(
        "SELECT count(*) FROM @lanes@ l WHERE (l.until <= @lane_time@ OR l.clock <> {clock})
            AND EXISTS (SELECT 1 FROM @messages@ m WHERE m.lane = l.lane AND {DUE})"
    );
    if integer(place.in_time(connection.rows(&free, &[])).await?)? > 0 {
        return Ok(Look::Work);
    }
    let next = "SELECT min(retry_at) - @now@ FROM @messages@ WHERE retry_at IS NOT NULL AND dead_at IS NULL";
    let next = optional(place.in_time(connection.rows(next, &[])).await?)?;
    Ok(Look::Nothing(next.map(|millis| Duration::from_millis(millis.try_into().unwrap_or(0)))))
}

/// Claims the free lane that was served longest ago, and counts another attempt for each message of the batch before any is sent.
/// `None` where no free lane has anything to send. Five statements.
pub(super) async fn claim(
    place: &Place,
    connection: &mut dyn Connection,
    relay: &str,
    length: Duration,
    most: u32,
) -> Result<Option<Batch>> {
    place.in_time(connection.script("@begin_on_disk@")).await?;
    let claim = format!(
        "UPDATE @lanes@ SET token = token + 1, until = @lane_time@ + $1, relay = $2, clock = $3
        WHERE lane = (
            SELECT l.lane FROM @lanes@ l WHERE (l.until <= @lane_time@ OR l.clock <> $3)
                AND EXISTS (SELECT 1 FROM @messages@ m WHERE m.lane = l.lane AND {DUE})
            ORDER BY l.until LIMIT 1 @skip_locked@
        ) RETURNING lane@integer@, token"
    );
    let millis = Value::Integer(length.as_millis().try_into().unwrap_or(i64::MAX));
    let values = [millis, Value::Text(relay.to_owned()), Value::Text(place.kind().clock()?)];
    let Some(mut claimed) = place.in_time(connection.rows(&claim, &values)).await?.pop() else {
        place.in_time(connection.script("COMMIT")).await?;
        return Ok(None);
    };
    let (lane, token) = (next_integer(&mut claimed)?, next_integer(&mut claimed)?);
    // A statement of its own, which sees all that the lane's last relay has said of it.
    let mark = format!(
        "UPDATE @messages@ SET attempts = attempts + 1 WHERE number IN (
            SELECT m.number FROM @messages@ m WHERE m.lane = $1 AND {DUE} ORDER BY m.number LIMIT $2
        ) RETURNING number, @id@, topic, key, @bytes@ AS payload, attempts, enqueued_at, refusals"
    );
    let values = [Value::Integer(lane), Value::Integer(most.into())];
    let rows = place.in_time(connection.rows(&mark, &values)).await?;
    let mut deliveries = rows.into_iter().map(delivery).collect::<Result<Vec<_>>>()?;
    place.in_time(connection.script("COMMIT")).await?;
    deliveries.sort_by_key(|delivery| delivery.number);
    Ok(Some(Batch { lane, token, deliveries }))
}

/// Says what became of a batch, and gives its lane back. Errors with [`ErrorKind::Lost`], and says nothing, where another relay has
/// claimed the lane since. Four statements, and one for each message that failed.
pub(super) async fn settle(
    place: &Place,
    connection: &mut dyn Connection,
    batch: &Batch,
    outcome: &Outcome,
) -> Result<()> {
    place.in_time(connection.script("@begin@")).await?;
    // It is locked until the end, so that nobody claims it in between. Its next token is one that no claim has, so that an answer
    // that was lost is not said twice.
    let give_back = "UPDATE @lanes@ SET token = token + 1, until = @lane_time@, relay = '' WHERE lane = $1 AND token = $2";
    let values = [Value::Integer(batch.lane), Value::Integer(batch.token)];
    if place.in_time(connection.change(give_back, &values)).await? == 0 {
        place.in_time(connection.script("ROLLBACK")).await?;
        return Err(Error::new(
            ErrorKind::Lost,
            format!(
                "outbox: the claim {} on lane {} is over: what was sent under it is sent again",
                batch.token, batch.lane
            ),
        ));
    }
    let delivered = serde_json::to_string(&outcome.delivered).expect("these are numbers");
    let delete = "DELETE FROM @messages@ WHERE number IN @numbers_of_$1@";
    place.in_time(connection.change(delete, &[Value::Text(delivered)])).await?;
    for failed in &outcome.failed {
        let (retry, is_refused, is_dead) = match failed.then {
            Then::Retry { after, is_refused } => {
                (after.as_millis().try_into().unwrap_or(i64::MAX), is_refused, false)
            }
            Then::Dead => (0, true, true),
        };
        let values = [
            Value::Integer(failed.number.cast_signed()),
            Value::Integer(is_refused.into()),
            Value::Integer(retry),
            Value::Text(failed.why.clone()),
            Value::Integer(is_dead.into()),
        ];
        let fail = "UPDATE @messages@ SET refusals = refusals + $2, retry_at = @now@ + $3, last_error = $4,
            dead_at = CASE WHEN $5 = 1 THEN @now@ END WHERE number = $1";
        place.in_time(connection.change(fail, &values)).await?;
    }
    place.in_time(connection.script("COMMIT")).await
}

/// Which dead letters to put back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Which {
    /// All of them.
    All,
    /// Those of one key.
    Key(String),
    /// One.
    Id(MessageId),
}

/// Puts dead letters back at the end of their keys' lines, and returns how many there were.
pub(super) async fn retry(place: &Place, connection: &mut dyn Connection, which: &Which) -> Result<u64> {
    let (condition, values) = match which {
        Which::All => ("", vec![]),
        Which::Key(key) => ("AND key = $1", vec![Value::Text(key.clone())]),
        Which::Id(id) => ("AND id = @new_id@", vec![Value::Text(id.to_string())]),
    };
    // Both statements see the same dead letters, whatever dies in between.
    place.in_time(connection.script("@begin_snapshot@")).await?;
    let dead = format!("dead_at IS NOT NULL {condition}");
    // With new numbers, in the order of the old ones.
    let again = format!(
        "INSERT INTO @messages@ (id, topic, key, payload, enqueued_at, attempts)
        SELECT id, topic, key, payload, enqueued_at, attempts FROM @messages@ WHERE {dead} ORDER BY number"
    );
    place.in_time(connection.change(&again, &values)).await?;
    let delete = format!("DELETE FROM @messages@ WHERE {dead}");
    let deleted = place.in_time(connection.change(&delete, &values)).await?;
    place.in_time(connection.script("COMMIT")).await.map_err(Error::with_unknown_effect)?;
    Ok(deleted)
}

/// What is in an outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// How many messages are to be sent, those that wait for another try included.
    pub pending: u64,
    /// For how long the oldest of them has been there, in milliseconds by the database's clock.
    pub oldest_ms: Option<u64>,
    /// Messages that were not taken and are tried again, each the first of its key: what is behind it waits. At most a hundred.
    pub waiting: Vec<Troubled>,
    /// How many dead letters there are.
    pub dead: u64,
    /// The first hundred of them.
    pub dead_letters: Vec<Troubled>,
    /// The relays that have claimed something right now, in alphabetical order.
    pub relays: Vec<AtWork>,
}

/// A relay that has claimed something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AtWork {
    /// Its host and process.
    pub relay: String,
    /// How many lanes it has claimed.
    pub lanes: u64,
}

/// A message that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Troubled {
    /// What it is called.
    #[serde(serialize_with = "as_text")]
    pub id: MessageId,
    /// Its number.
    pub number: u64,
    /// What it is about.
    pub topic: String,
    /// The key that it holds up while it waits.
    pub key: Option<String>,
    /// How often it was given to a sink.
    pub attempts: u64,
    /// How often a sink has refused it.
    pub refusals: u64,
    /// In how many milliseconds it is tried again; nothing for a dead letter.
    pub retry_in_ms: Option<u64>,
    /// What the sink said last.
    pub error: String,
}

fn as_text<S: serde::Serializer>(id: &MessageId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// What is there. It counts every message: the longer the outbox, the longer it takes. Five statements.
pub(super) async fn status(place: &Place, connection: &mut dyn Connection) -> Result<Status> {
    let counts = "SELECT count(*), min(enqueued_at), @now@ FROM @messages@ WHERE dead_at IS NULL";
    let mut counts = one(place.in_time(connection.rows(counts, &[])).await?)?;
    let (pending, oldest, now) = (next_integer(&mut counts)?, counts.next(), next_integer(&mut counts)?);
    let oldest_ms = match oldest {
        Some(Value::Integer(oldest)) => Some(now.saturating_sub(oldest).try_into().unwrap_or(0)),
        _ => None,
    };
    let dead = integer(
        place
            .in_time(connection.rows("SELECT count(*) FROM @messages@ WHERE dead_at IS NOT NULL", &[]))
            .await?,
    )?;
    let mut lists = Vec::new();
    for condition in ["retry_at IS NOT NULL AND dead_at IS NULL", "dead_at IS NOT NULL"] {
        let list = format!(
            "SELECT number, @id@, topic, key, attempts, refusals, CASE WHEN dead_at IS NULL THEN retry_at - @now@ END, last_error
            FROM @messages@ WHERE {condition} ORDER BY number LIMIT {NAMED_MAX}"
        );
        let rows = place.in_time(connection.rows(&list, &[])).await?;
        lists.push(rows.into_iter().map(troubled).collect::<Result<Vec<_>>>()?);
    }
    let [waiting, dead_letters] = <[_; 2]>::try_from(lists).expect("two are asked for");
    let clock = literal(&place.kind().clock()?);
    let relays = format!(
        "SELECT relay, count(*) FROM @lanes@ WHERE until > @lane_time@ AND clock = {clock} GROUP BY relay ORDER BY relay"
    );
    let rows = place.in_time(connection.rows(&relays, &[])).await?;
    let relays = rows
        .into_iter()
        .map(|mut row| Ok(AtWork { relay: next_text(&mut row)?, lanes: unsigned(next_integer(&mut row)?)? }));
    let relays = relays.collect::<Result<_>>()?;
    Ok(Status {
        pending: unsigned(pending)?,
        oldest_ms,
        waiting,
        dead: unsigned(dead)?,
        dead_letters,
        relays,
    })
}

fn delivery(mut row: Row) -> Result<Delivery> {
    Ok(Delivery {
        number: unsigned(next_integer(&mut row)?)?,
        id: next_text(&mut row)?.parse()?,
        topic: next_text(&mut row)?,
        key: next_optional_text(&mut row)?,
        payload: match row.next() {
            Some(Value::Bytes(bytes)) => bytes,
            other => return Err(unexpected(other.as_ref())),
        },
        attempt: unsigned(next_integer(&mut row)?)?,
        enqueued_at: WallTime::from_millis(unsigned(next_integer(&mut row)?)?),
        refusals: unsigned(next_integer(&mut row)?)?,
    })
}

fn troubled(mut row: Row) -> Result<Troubled> {
    Ok(Troubled {
        number: unsigned(next_integer(&mut row)?)?,
        id: next_text(&mut row)?.parse()?,
        topic: next_text(&mut row)?,
        key: next_optional_text(&mut row)?,
        attempts: unsigned(next_integer(&mut row)?)?,
        refusals: unsigned(next_integer(&mut row)?)?,
        retry_in_ms: match row.next() {
            Some(Value::Integer(millis)) => Some(millis.try_into().unwrap_or(0)),
            _ => None,
        },
        error: next_optional_text(&mut row)?.unwrap_or_default(),
    })
}

fn one(rows: Vec<Row>) -> Result<Row> {
    rows.into_iter().next().ok_or_else(|| unexpected(None))
}

/// The one integer that was asked for.
pub(super) fn integer(rows: Vec<Row>) -> Result<i64> {
    next_integer(&mut one(rows)?)
}

/// The one integer that was asked for, where there is one.
fn optional(rows: Vec<Row>) -> Result<Option<i64>> {
    match one(rows)?.next() {
        Some(Value::Integer(number)) => Ok(Some(number)),
        Some(Value::Null) => Ok(None),
        other => Err(unexpected(other.as_ref())),
    }
}

fn next_integer(row: &mut Row) -> Result<i64> {
    match row.next() {
        Some(Value::Integer(number)) => Ok(number),
        other => Err(unexpected(other.as_ref())),
    }
}

fn next_text(row: &mut Row) -> Result<String> {
    next_optional_text(row)?.ok_or_else(|| unexpected(Some(&Value::Null)))
}

fn next_optional_text(row: &mut Row) -> Result<Option<String>> {
    match row.next() {
        Some(Value::Text(text)) => Ok(Some(text)),
        Some(Value::Null) => Ok(None),
        other => Err(unexpected(other.as_ref())),
    }
}

fn unsigned(number: i64) -> Result<u64> {
    number.try_into().map_err(|_| unexpected(Some(&Value::Integer(number))))
}

fn unexpected(value: Option<&Value>) -> Error {
    Error::new(ErrorKind::Corrupt, format!("outbox: its tables hold {value:?} where nothing of ours puts it"))
}
