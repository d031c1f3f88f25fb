//! The statements of the recipe, each for many locks at a time.

use ringfence_core::{Contention, FencingToken, LeaseKey, LockName, Nonce, Result, Ttl};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::error;
use crate::link::{Link, Sql};
use crate::rows;
use crate::schema::Schema;

/// The statements, with the name of the schema in them.
#[derive(Debug)]
pub(super) struct Calls {
    /// Whether leases end with the beacon of their process.
    beacon: bool,
    acquire_one: Sql,
    acquire_free: Sql,
    acquire: Sql,
    look: Sql,
    seen: Sql,
    renew: Sql,
    release_one: Sql,
    release_free: Sql,
    release: Sql,
    withdraw: Sql,
    downgrade: Sql,
    evict: Sql,
    show: Sql,
    tidy: Sql,
}

/// How an attempt asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// Without waiting.
    Try,
    /// Joins the line, where somebody is in the way.
    Queue,
    /// Looks after its place in line, and joins no other.
    Look,
}

impl Verb {
    /// As the server reads it.
    fn written(self) -> i8 {
        let letter = match self {
            Self::Try => b'a',
            Self::Queue => b'q',
            Self::Look => b'l',
        };
        letter.cast_signed()
    }
}

/// What an attempt asks for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) verb: Verb,
    pub(super) lease: LeaseKey,
    pub(super) mode: i32,
    /// For whom, as it is written.
    pub(super) holder: String,
    /// What our process is called in the rows.
    pub(super) session: i64,
}

/// What the server answered to an attempt.
#[derive(Debug)]
pub(super) enum Answer {
    Granted {
        number: u64,
        /// Whether nobody had used the name, as far as the server remembers.
        is_new: bool,
    },
    /// It stands in line. No turn with this number or a lower one is its own any more.
    Waits(u64, Contention),
    /// It stands in line no more.
    Gone,
    Busy(Contention),
    Withdrawn,
    Full,
}

/// One that does not just stand in line any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stir {
    pub(super) nonce: Nonce,
    /// Whether it stands there no more. Otherwise somebody is about to take its place away, as it may be to give it its turn.
    pub(super) is_gone: bool,
}

/// A row of somebody at a lock.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) name: String,
    pub(super) holds: bool,
    pub(super) nonce: i64,
    pub(super) mode: i32,
    pub(super) number: Option<i64>,
    pub(super) age: i64,
    pub(super) remaining: Option<i64>,
    pub(super) holder: String,
}

impl AsRef<str> for Asked {
    fn as_ref(&self) -> &str {
        self.lease.name.as_str()
    }
}

pub(super) fn millis(ttl: Ttl) -> i32 {
    ttl.as_millis().try_into().expect("a TTL is at most a day")
}

impl Calls {
    pub(super) fn new(schema: &Schema, beacon: bool) -> Self {
        let (names, nonces, ttls) = (Type::TEXT_ARRAY, Type::INT8_ARRAY, Type::INT4_ARRAY);
        let sql = |text: &str, types: &[Type]| schema.sql(text, types);
        Self {
            beacon,
            acquire_one: sql(
                "SELECT verdict, number, waiters, others FROM @schema@.acquire_one($1, $2, $3, $4, $5, $6, $7, $8)",
                &[
                    Type::INT8,
                    Type::BOOL,
                    Type::CHAR,
                    Type::TEXT,
                    Type::INT8,
                    Type::INT4,
                    Type::INT4,
                    Type::TEXT,
                ],
            ),
            acquire: sql(
                "SELECT verdict, number, waiters, others FROM @schema@.acquire($1, $2, $3, $4, $5, $6, $7, $8)",
                &[
                    Type::INT8_ARRAY,
                    Type::BOOL,
                    Type::CHAR_ARRAY,
                    names.clone(),
                    nonces.clone(),
                    Type::INT4_ARRAY,
                    ttls.clone(),
                    Type::TEXT_ARRAY,
                ],
            ),
            acquire_free: sql(
                "SELECT item, number FROM @schema@.acquire_free($1, $2, $3, $4, $5, $6)",
                &[
                    Type::INT8_ARRAY,
                    Type::BOOL,
                    names.clone(),
                    nonces.clone(),
                    ttls.clone(),
                    Type::TEXT_ARRAY,
                ],
            ),
            look: sql("SELECT nonce, is_gone FROM @schema@.look($1, $2)", &[names.clone(), nonces.clone()]),
            seen: sql("SELECT 1 FROM @schema@.seen($1)", &[Type::INT8]),
            renew: sql("SELECT @schema@.renew($1, $2, $3)", &[names.clone(), nonces.clone(), ttls]),
            release_one: sql("SELECT @schema@.release_one($1, $2)", &[Type::TEXT, Type::INT8]),
            release: sql("SELECT @schema@.release($1, $2)", &[names.clone(), nonces.clone()]),
            release_free: sql("SELECT @schema@.release_free($1, $2)", &[names, nonces]),
            withdraw: sql(
                "SELECT 1 FROM @schema@.withdraw($1, $2, $3, $4)",
                &[Type::INT8, Type::TEXT, Type::INT8, Type::INT4],
            ),
            downgrade: sql("SELECT @schema@.downgrade($1, $2, $3)", &[Type::TEXT, Type::INT8, Type::INT4]),
            evict: sql("SELECT @schema@.evict($1, $2)", &[Type::TEXT, Type::INT8]),
            show: sql(
                "SELECT name, kind = 'h', nonce, mode, number, age, remaining, holder FROM @schema@.show($1, $2, $3, $4)",
                &[Type::TEXT, Type::TEXT, Type::TEXT, Type::INT4],
            ),
            tidy: sql("SELECT @schema@.tidy()", &[]),
        }
    }

    /// Asks for leases, in the order of their locks. One round trip.
    pub(super) async fn acquire(&self, link: &Link, asked: &[Asked]) -> Result<Vec<Answer>> {
        if let [one] = asked {
            return Ok(vec![self.acquire_one(link, one).await?]);
        }
        let verbs: Vec<i8> = asked.iter().map(|asked| asked.verb.written()).collect();
        let (names, nonces, ttls) = columns(asked.iter().map(|asked| &asked.lease));
        let modes: Vec<i32> = asked.iter().map(|asked| asked.mode).collect();
        let holders: Vec<&str> = asked.iter().map(|asked| &*asked.holder).collect();
        let sessions: Vec<i64> = asked.iter().map(|asked| asked.session).collect();
        let rows = link
            .query(
                &self.acquire,
                &[&sessions, &self.beacon, &verbs, &names, &nonces, &modes, &ttls, &holders],
            )
            .await?;
        rows.iter().zip(asked).map(|(row, asked)| answer(link, row, asked.lease.nonce)).collect()
    }

    async fn acquire_one(&self, link: &Link, asked: &Asked) -> Result<Answer> {
        let Asked { verb, lease, mode, holder, session } = asked;
        let (name, nonce, ttl) = (lease.name.as_str(), rows::write_nonce(lease.nonce), millis(lease.ttl));
        let rows = link
            .query(
                &self.acquire_one,
                &[session, &self.beacon, &verb.written(), &name, &nonce, mode, &ttl, holder],
            )
            .await?;
        answer(link, rows.first().ok_or_else(|| error::odd_answer(link.shown()))?, lease.nonce)
    }

    /// Asks for those of many leases that are simply free, in the order of their locks; `None` for the others. One round trip at
    /// most, and a quarter of the server's time that [`acquire`](Self::acquire) takes.
    pub(super) async fn acquire_free(&self, link: &Link, asked: &[Asked]) -> Result<Vec<Option<Answer>>> {
        let mut answers: Vec<_> = asked.iter().map(|_| None).collect();
        let may_be_free = |asked: &Asked| asked.mode == rows::EXCLUSIVE && asked.verb != Verb::Look;
        let places: Vec<usize> = (0..asked.len()).filter(|place| may_be_free(&asked[*place])).collect();
        if places.is_empty() {
            return Ok(answers);
        }
        let some = || places.iter().map(|place| &asked[*place]);
        let (names, nonces, ttls) = columns(some().map(|asked| &asked.lease));
        let holders: Vec<&str> = some().map(|asked| &*asked.holder).collect();
        let sessions: Vec<i64> = some().map(|asked| asked.session).collect();
        let rows = link
            .query(&self.acquire_free, &[&sessions, &self.beacon, &names, &nonces, &ttls, &holders])
            .await?;
        for row in &rows {
            let odd = || error::odd_answer(link.shown());
            let place = item(row).and_then(|item| places.get(item).copied()).ok_or_else(odd)?;
            let number: i64 = row.try_get(1).map_err(|error| odd().because(error))?;
            let number = number_of_grant(number, asked[place].lease.nonce).ok_or_else(odd)?;
            answers[place] = Some(Answer::Granted { number, is_new: false });
        }
        Ok(answers)
    }

    /// A sign of life of a process that waits. One round trip.
    pub(super) async fn seen(&self, link: &Link, session: i64) -> Result<()> {
        link.query(&self.seen, &[&session]).await.map(drop)
    }

    /// Which of these do not just stand in line. One round trip.
    pub(super) async fn look(&self, link: &Link, standing: &[(LockName, Nonce)]) -> Result<Vec<Stir>> {
        let names: Vec<&str> = standing.iter().map(|(name, _)| name.as_str()).collect();
        let nonces: Vec<i64> = standing.iter().map(|(_, nonce)| rows::write_nonce(*nonce)).collect();
        let rows = link.query(&self.look, &[&names, &nonces]).await?;
        let stir = |row: &Row| {
            let nonce = rows::read_nonce(row.try_get(0).ok()?)?;
            Some(Stir { nonce, is_gone: row.try_get(1).ok()? })
        };
        rows.iter().map(|row| stir(row).ok_or_else(|| error::odd_answer(link.shown()))).collect()
    }

    /// For each, whether it lives. One round trip.
    pub(super) async fn renew(&self, link: &Link, leases: &[LeaseKey]) -> Result<Vec<bool>> {
        let (names, nonces, ttls) = columns(leases);
        booleans(link, &link.query(&self.renew, &[&names, &nonces, &ttls]).await?)
    }

    /// For each, whether it held. One round trip.
    pub(super) async fn release(&self, link: &Link, leases: &[LeaseKey]) -> Result<Vec<bool>> {
        if let [lease] = leases {
            let (name, nonce) = (lease.name.as_str(), rows::write_nonce(lease.nonce));
            return booleans(link, &link.query(&self.release_one, &[&name, &nonce]).await?);
        }
        let (names, nonces, _) = columns(leases);
        booleans(link, &link.query(&self.release, &[&names, &nonces]).await?)
    }

    /// Gives back those of many leases for whose locks nobody waits; `None` for the others. One round trip.
    pub(super) async fn release_free(&self, link: &Link, leases: &[LeaseKey]) -> Result<Vec<Option<bool>>> {
        let (names, nonces, _) = columns(leases);
        let mut answers = vec![None; leases.len()];
        for row in &link.query(&self.release_free, &[&names, &nonces]).await? {
            let answer = item(row).and_then(|item| answers.get_mut(item));
            *answer.ok_or_else(|| error::odd_answer(link.shown()))? = Some(true);
        }
        Ok(answers)
    }

    /// Undoes an attempt that may be under way still. One round trip.
    pub(super) async fn withdraw(&self, link: &Link, session: i64, lease: &LeaseKey) -> Result<()> {
        let (name, nonce, ttl) = (lease.name.as_str(), rows::write_nonce(lease.nonce), millis(lease.ttl));
        link.query(&self.withdraw, &[&session, &name, &nonce, &ttl]).await.map(drop)
    }

    /// Whether it lives, and is shared from now on. One round trip.
    pub(super) async fn downgrade(&self, link: &Link, lease: &LeaseKey) -> Result<bool> {
        let (name, nonce, ttl) = (lease.name.as_str(), rows::write_nonce(lease.nonce), millis(lease.ttl));
        boolean(link, &link.query(&self.downgrade, &[&name, &nonce, &ttl]).await?)
    }

    /// Whether there was such a holder. One round trip.
    pub(super) async fn evict(&self, link: &Link, name: &LockName, holder: Nonce) -> Result<bool> {
        boolean(link, &link.query(&self.evict, &[&name.as_str(), &rows::write_nonce(holder)]).await?)
    }

    /// Everybody at the locks from a name on whose names begin so; those of at most so many locks. One round trip.
    pub(super) async fn show(
        &self,
        link: &Link,
        from: &str,
        prefix: &str,
        after: Option<&str>,
        most: i32,
    ) -> Result<Vec<Shown>> {
        let rows = link.query(&self.show, &[&from, &prefix, &after, &most]).await?;
        rows.iter().map(|row| shown(row).map_err(|_| error::odd_answer(link.shown()))).collect()
    }

    /// Forgets names that nobody has used for long. One round trip.
    pub(super) async fn tidy(&self, link: &Link) -> Result<()> {
        link.query(&self.tidy, &[]).await.map(drop)
    }
}

type Columns<'a> = (Vec<&'a str>, Vec<i64>, Vec<i32>);

fn columns<'a>(leases: impl IntoIterator<Item = &'a LeaseKey>) -> Columns<'a> {
    let mut columns = Columns::default();
    for lease in leases {
        columns.0.push(lease.name.as_str());
        columns.1.push(rows::write_nonce(lease.nonce));
        columns.2.push(millis(lease.ttl));
    }
    columns
}

fn answer(link: &Link, row: &Row, nonce: Nonce) -> Result<Answer> {
    let odd = || error::odd_answer(link.shown());
    let verdict: i8 = row.try_get(0).map_err(|error| odd().because(error))?;
    let number: Option<i64> = row.try_get(1).map_err(|error| odd().because(error))?;
    let waiters: i32 = row.try_get(2).map_err(|error| odd().because(error))?;
    let others: Option<Vec<String>> = row.try_get(3).map_err(|error| odd().because(error))?;
    let contention = || {
        let holders = others.iter().flatten().filter_map(|text| rows::read_holder(text)).collect();
        Contention::new(holders, usize::try_from(waiters).unwrap_or(0))
    };
    Ok(match verdict.cast_unsigned() {
        verdict @ (b'g' | b'c') => {
            let number = number.and_then(|number| number_of_grant(number, nonce)).ok_or_else(odd)?;
            Answer::Granted { number, is_new: verdict == b'c' }
        }
        b'w' => {
            let last = number.and_then(|number| u64::try_from(number).ok()).ok_or_else(odd)?;
            Answer::Waits(last, contention())
        }
        b'b' => Answer::Busy(contention()),
        b'n' => Answer::Gone,
        b'x' => Answer::Withdrawn,
        b'f' => Answer::Full,
        _ => return Err(odd()),
    })
}

/// The number of a grant, where a token can be made of it.
fn number_of_grant(number: i64, nonce: Nonce) -> Option<u64> {
    u64::try_from(number).ok().filter(|number| FencingToken::of_grant(*number, nonce).is_ok())
}

/// Which one of those that were sent a row is about. The server counts from one.
fn item(row: &Row) -> Option<usize> {
    usize::try_from(row.try_get::<_, i32>(0).ok()?).ok()?.checked_sub(1)
}

fn shown(row: &Row) -> Result<Shown, tokio_postgres::Error> {
    Ok(Shown {
        name: row.try_get(0)?,
        holds: row.try_get(1)?,
        nonce: row.try_get(2)?,
        mode: row.try_get(3)?,
        number: row.try_get(4)?,
        age: row.try_get(5)?,
        remaining: row.try_get(6)?,
        holder: row.try_get(7)?,
    })
}

fn booleans(link: &Link, rows: &[Row]) -> Result<Vec<bool>> {
    rows.iter().map(|row| row.try_get(0).map_err(|_| error::odd_answer(link.shown()))).collect()
}

fn boolean(link: &Link, rows: &[Row]) -> Result<bool> {
    rows.first().and_then(|row| row.try_get(0).ok()).ok_or_else(|| error::odd_answer(link.shown()))
}
