//! How a lease is got: a key in the line, and nobody ahead of it who is in the way.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backoff, BootInstant, Contention, Effect, Error, ErrorKind, Lease, LeaseKey,
    LockName, Mode, Nonce, Result, Retry, Wait,
};

use crate::backend::Client;
use crate::batch::TXN;
use crate::error;
use crate::follower::Next;
use crate::held::Holding;
use crate::keys::Range;
use crate::leases::ServerLease;
use crate::line::{self, PLACE, Place, Standing};
use crate::ops;
use crate::proto::{RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use crate::slots::Slot;
use crate::watch::{Ear, News, Tells, Watch, What};

/// How often a waiter sees to it that its place lives on.
const KEEP_EVERY: Duration = Duration::from_millis(500);

/// How often a waiter looks where it stands, whatever it hears: the net under an event that was lost.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A watch that begins while others write may be behind from its beginning. The server brings such watches up to date ten times a
/// second, and a hand-over until then is heard that late. So a new watch is not waited for alone: the first look comes soon, a little
/// later for each one in line, and each next one after twice as long, until the watch must have caught up.
const LOOK_FIRST: Duration = Duration::from_millis(4);
const LOOK_LATER: Duration = Duration::from_micros(500);
const WATCH_CATCHES_UP: Duration = Duration::from_millis(100);

/// How long a line is at most in which each listens for who comes next. To look for one who came before costs the server what the line
/// does, and a thousand who join at the same time and all look would keep it from everything else.
const LISTENS_UP_TO: u32 = 128;

/// A place is kept alive when this part of its life is over, and so is the lease of a grant, so that it is fresh.
const FRESH_PART: u32 = 8;

/// What a turn will live by is kept alive meanwhile when this part of its life is over.
const LASTING_PART: u32 = 3;

/// How many places are read to say who is in the way. Of more holders, the others are counted as waiters.
const FRONT: i64 = 64;

/// How often an attempt finds its lease gone under its hands before it gives up.
const TRIES: usize = 3;

/// The pauses between tries to withdraw.
const WITHDRAW_FIRST: Duration = Duration::from_millis(20);
const WITHDRAW_MOST: Duration = Duration::from_millis(500);
/// The same, at most, where the cluster refuses it.
const WITHDRAW_REFUSED: Duration = Duration::from_secs(5);

/// For how long it is remembered that an attempt was withdrawn. No command is under way for that long.
const WITHDRAWN: Duration = Duration::from_mins(1);

impl Client {
    /// Asks for a lease, and waits for it as the request says.
    pub(crate) async fn acquire(self: Arc<Self>, mut request: AcquireRequest) -> Result<Attempt> {
        self.keys.check(&request.name)?;
        let slot = self.slots.take(&request.name);
        let mut attempt =
            Pending { client: &self, request: &mut request, slot, may_stand: None, settled: false };
        let outcome = match attempt.seek().await {
            Err(error) if attempt.may_stand.is_some() => {
                let withdrawal = attempt.withdrawal();
                let is_undone = Box::pin(self.withdraw(withdrawal)).await;
                Err(if is_undone { error.without_effect() } else { error.with_unknown_effect() })
            }
            // A lease that nobody lives by ends by itself.
            outcome => outcome.map_err(Error::without_effect),
        };
        attempt.settled = true;
        outcome
    }

    /// Undoes an attempt, and sees to it that it cannot come back. Tries until it is answered, at most for the TTL, and then goes
    /// on in the background, as it does where the cluster refuses it: the server's lease that the attempt shares with others may live
    /// on. Says whether it is known that nothing is left of it.
    async fn withdraw(self: &Arc<Self>, withdrawal: Withdrawal) -> bool {
        let ends = self.now().saturating_add(withdrawal.ttl);
        let mut backoff = Backoff::new(WITHDRAW_FIRST, WITHDRAW_MOST);
        while self.now() < ends {
            match self.try_to_withdraw(&withdrawal).await {
                Ok(()) => return true,
                Err(error) if error.retry() == Retry::Never && error.kind() != ErrorKind::Lost => {
                    tracing::warn!(%error, "an attempt cannot be withdrawn yet");
                    // Somebody has to change something first, and nobody is to wait for that.
                    backoff = Backoff::new(WITHDRAW_MOST, WITHDRAW_REFUSED);
                    break;
                }
                Err(_) => tokio::time::sleep(backoff.pause()).await,
            }
        }
        // Without the client nobody renews what the attempt lives by.
        let client = Arc::downgrade(self);
        self.runtime.spawn(async move {
            while let Some(client) = client.upgrade() {
                if client.try_to_withdraw(&withdrawal).await.is_ok() {
                    return;
                }
                drop(client);
                tokio::time::sleep(backoff.pause()).await;
            }
        });
        false
    }

    /// Undoes an attempt, or errors with why it has to be tried again.
    async fn try_to_withdraw(&self, withdrawal: &Withdrawal) -> Result<()> {
        let Withdrawal { name, key, nonce, .. } = withdrawal;
        let withdrawn = async {
            let (reminder, _) = self.leases.grant(WITHDRAWN).await?;
            let success =
                vec![ops::delete(key), ops::put(&self.keys.withdrawn(*nonce), Vec::new(), reminder.id())];
            self.batch.change(name, TxnRequest { success, ..TxnRequest::default() }).await
        };
        match withdrawn.await {
            // There is no room for a reminder, nor for the attempt if it comes late.
            Err(error) if error.kind() == ErrorKind::Full => self.delete(name, key).await.map(drop),
            withdrawn => withdrawn.map(drop),
        }
    }
}

/// What has to be undone.
struct Withdrawal {
    name: LockName,
    key: Vec<u8>,
    nonce: Nonce,
    ttl: Duration,
}

/// An attempt under way; withdrawn in the background if its future is dropped.
struct Pending<'a> {
    client: &'a Arc<Client>,
    request: &'a mut AcquireRequest,
    slot: Arc<Slot>,
    /// The key that the cluster may have.
    may_stand: Option<Vec<u8>>,
    settled: bool,
}

/// What became of asking.
enum Asked {
    Holds(Granted),
    /// It has a place in line.
    Stands(Stand),
    Busy(Contention),
    /// Nothing was done: a lease had ended meanwhile.
    Again,
}

/// A place at the front.
struct Granted {
    key: Vec<u8>,
    created: i64,
    lease: Arc<ServerLease>,
    sent: BootInstant,
    next: Option<Arc<Next>>,
}

/// A place that is not at the front.
struct Stand {
    key: Vec<u8>,
    created: i64,
    lease: Arc<ServerLease>,
    behind: Behind,
    /// The revision of the store at which that was so.
    looked: i64,
}

/// Where one stands that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Behind {
    standing: Standing,
    /// Whether there is no other that does not stand behind it.
    is_only: bool,
    /// How many stand in line.
    length: u32,
}

/// When a waiter looks where it stands, whatever it hears.
struct Looks {
    last: BootInstant,
    next: BootInstant,
    pause: Duration,
}

impl Looks {
    /// With a new watch. For others than those who want the lock alone a look costs what the line does, so that a watch that is behind
    /// is waited for.
    fn begin(mode: Mode, behind: &Behind, now: BootInstant) -> Self {
        let soon = LOOK_FIRST + LOOK_LATER.saturating_mul(behind.length.saturating_sub(2));
        let pause = if mode == Mode::Exclusive && soon < WATCH_CATCHES_UP { soon } else { LOOK_EVERY };
        Self { last: now, next: now.saturating_add(pause), pause }
    }

    fn looked(&mut self, now: BootInstant) {
        self.pause = if self.pause < WATCH_CATCHES_UP { 2 * self.pause } else { LOOK_EVERY };
        (self.last, self.next) = (now, now.saturating_add(self.pause));
    }

    /// It could not look, and tries again a while later.
    fn failed(&mut self, now: BootInstant) {
        self.next = now.saturating_add(KEEP_EVERY);
    }
}

impl Pending<'_> {
    /// Asks until it is granted, or nobody waits any more.
    async fn seek(&mut self) -> Result<Attempt> {
        let mut tries = 0;
        loop {
            let deadline = match self.request.wait {
                Wait::Until(deadline) if self.client.now() < deadline => Some(deadline),
                _ => None,
            };
            match Box::pin(self.ask(deadline.is_some())).await? {
                Asked::Holds(granted) => return self.grant(granted),
                Asked::Busy(contention) => {
                    self.slot.is_gone();
                    return Ok(Attempt::Busy(contention));
                }
                Asked::Stands(stand) => match deadline {
                    Some(deadline) => {
                        if let Some(attempt) = Box::pin(self.wait(stand, deadline)).await? {
                            return Ok(attempt);
                        }
                        tries = 0;
                    }
                    None => return Box::pin(self.give_up(&stand.key)).await,
                },
                Asked::Again => {
                    tries += 1;
                    if tries == TRIES {
                        return Err(Error::new(
                            ErrorKind::Unavailable,
                            "the cluster ends leases as soon as it has granted them: look at its members' clocks and disks",
                        ));
                    }
                }
            }
        }
    }

    /// Takes the lock if nobody is there, and else, if it waits, a place in line.
    async fn ask(&mut self, waits: bool) -> Result<Asked> {
        let client = self.client;
        let (mode, ttl) = (self.request.mode, self.request.ttl.as_duration());
        let lease = client.leases.get(ttl).await?;
        // The place of one that waits lives by a lease of its own, and only while somebody waits.
        let in_line = if waits && ttl > PLACE {
            match client.leases.present(PLACE) {
                Some(place) if client.leases.refresh(&place, FRESH_PART).await? => Some(place),
                _ => None,
            }
        } else {
            Some(Arc::clone(&lease))
        };
        let key = client.keys.place(&self.request.name, lease.id(), &self.slot);
        let line = client.keys.line(&self.request.name);
        let value = line::value(mode, ttl, self.request.nonce, &self.request.holder);
        let stays = ops::created_at(&client.keys.withdrawn(self.request.nonce), 0);

        let joins = waits || mode != Mode::Exclusive;
        let otherwise = match &in_line {
            Some(place) if joins => ops::txn(TxnRequest {
                compare: vec![stays.clone()],
                success: vec![ops::put(&key, value.clone(), place.id()), ops::range(ahead(mode, &line, 0))],
                failure: Vec::new(),
            }),
            _ => ops::range(front(&line)),
        };
        let txn = TxnRequest {
            compare: vec![ops::is_empty(&line), stays],
            success: vec![ops::put(&key, value.clone(), lease.id())],
            failure: vec![otherwise],
        };

        let sent = client.now();
        self.may_stand = Some(key.clone());
        let (answer, is_fresh) = tokio::join!(
            client.batch.change(&self.request.name, txn),
            client.leases.refresh(&lease, FRESH_PART)
        );
        if let Ok(false) = is_fresh {
            client.held.lost_with(&lease);
        }
        let answer = match answer {
            Err(error) if error::is_of_lease(&error) => {
                self.may_stand = None;
                match in_line.filter(|place| place.id() != lease.id()) {
                    None => {
                        lease.end();
                        client.held.lost_with(&lease);
                    }
                    // Either of them: others live by the one that is left, so that the cluster is asked which.
                    Some(place) => {
                        let now = client.now();
                        tokio::try_join!(client.keep_held(&lease, now), client.keep_held(&place, now))?;
                    }
                }
                return Ok(Asked::Again);
            }
            Err(error) => {
                if error.effect() == Effect::None {
                    self.may_stand = None;
                }
                return Err(error);
            }
            Ok(answer) => answer,
        };
        let odd = || error::odd_answer("a place in line that is not there", client.servers.shown());
        if answer.succeeded {
            let created = ops::revision(&answer);
            return self.holds(Granted { key, created, lease, sent, next: None }).await;
        }
        let Some(place) = in_line.filter(|_| joins) else {
            // It is in nobody's way, and nothing was written.
            self.may_stand = None;
            if !waits {
                return Ok(Asked::Busy(contention(&answer, 0).ok_or_else(odd)?));
            }
            client.leases.get(PLACE).await?;
            return Ok(Asked::Again);
        };
        let joined = ops::nested(&answer, 0).ok_or_else(odd)?;
        if !joined.succeeded {
            return Err(Error::new(ErrorKind::Unavailable, "the attempt was withdrawn meanwhile"));
        }
        let found = ops::found(joined, 1).ok_or_else(odd)?;
        let (created, behind) = look(mode, &key, found).ok_or_else(odd)?;
        match behind.standing {
            Standing::Holds => self.holds(Granted { key, created, lease: place, sent, next: None }).await,
            Standing::Behind(..) | Standing::BehindAny => {
                let looked = ops::revision(&answer);
                Ok(Asked::Stands(Stand { key, created, lease: place, behind, looked }))
            }
        }
    }

    /// A place at the front, unless the cluster has said meanwhile that what it lives by is no more.
    async fn holds(&mut self, granted: Granted) -> Result<Asked> {
        if granted.lease.is_over() {
            Box::pin(self.forget(&granted.key)).await?;
            return Ok(Asked::Again);
        }
        Ok(Asked::Holds(granted))
    }

    /// Stands in line until its turn comes or the wait ends. `None`: its place is gone, and it has to ask again.
    async fn wait(&mut self, mut stand: Stand, deadline: BootInstant) -> Result<Option<Attempt>> {
        let client = self.client;
        let created = stand.created;
        let news = Arc::new(News::default());
        let next = self.listens_for_the_next(&stand);
        let own = What { tells: Tells::Changes, ..What::end_of(&stand.key, created) };
        let _own = client.watches.watch(own, Ear::Turn(created, Arc::clone(&news)));
        let mut _in_the_way = self.watch_for(&stand.behind.standing, &news);
        // How much of what was heard has been looked at.
        let mut heard = 0;
        let mut looks = Looks::begin(self.request.mode, &stand.behind, client.now());
        // What the turn will live by, so that it need not be granted first when it comes.
        let mut lasting = client.leases.get(self.request.ttl.as_duration()).await?;
        loop {
            let now = client.now();
            if now >= deadline {
                return Box::pin(self.give_up(&stand.key)).await.map(Some);
            }
            let wake_at = now.saturating_add(KEEP_EVERY).min(looks.next).min(deadline);
            let nap = client.clock.nap(wake_at).unwrap_or_default();
            tokio::select! {
                biased;
                () = &mut self.request.abandoned => return Box::pin(self.give_up(&stand.key)).await.map(Some),
                () = news.next() => {}
                () = tokio::time::sleep(nap) => {}
            }
            // What was told together is heard together.
            tokio::task::yield_now().await;
            let sent = client.now();
            // Read once: what comes from now on is looked at the next time.
            let so_far = news.heard();
            let hears_from = news.hears_from();
            let (has_news, has_missed, is_due) =
                (so_far != heard, hears_from > stand.looked, sent >= looks.next);
            let reason =
                if has_news { Some(Reason::News) } else { (has_missed || is_due).then_some(Reason::Caution) };
            let seen = tokio::select! {
                biased;
                () = self.is_given_the_turn(&stand.lease, &news) => {
                    let Stand { key, lease, .. } = stand;
                    let granted = Granted { key, created, sent: lease.renewed(), lease, next };
                    return self.grant(granted).map(Some);
                }
                seen = self.stay(&stand, &lasting, &news, reason) => seen,
            };
            match seen {
                Ok(None) => {
                    heard = so_far;
                    stand.looked = stand.looked.max(hears_from);
                    if is_due {
                        looks.looked(sent);
                    }
                }
                Ok(Some(Seen::Gone)) => {
                    self.forget(&stand.key).await?;
                    return Ok(None);
                }
                Ok(Some(Seen::Claimed)) => {
                    let granted = Granted { key: stand.key, created, lease: lasting, sent, next };
                    return self.grant(granted).map(Some);
                }
                Ok(Some(Seen::Behind(behind, revision))) => {
                    (heard, stand.looked) = (so_far, revision);
                    looks.looked(sent);
                    if behind.standing != stand.behind.standing {
                        _in_the_way = self.watch_for(&behind.standing, &news);
                        looks = Looks::begin(self.request.mode, &behind, sent);
                    }
                    stand.behind = behind;
                }
                // What the turn was to live by is no more, and the place is there as before.
                Err(error) if error::is_of_lease(&error) => {
                    lasting.end();
                    client.held.lost_with(&lasting);
                    lasting = client.leases.get(self.request.ttl.as_duration()).await?;
                    looks.failed(sent);
                }
                // A cluster without a leader for a moment costs nobody a place: its leases live on until it has one.
                Err(error)
                    if error.retry() == Retry::Later
                        && sent.saturating_since(looks.last)
                            < self.request.ttl.as_duration() + LOOK_EVERY =>
                {
                    tracing::debug!(%error, "a waiter cannot look where it stands");
                    looks.failed(sent);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Keeps alive what the place lives by and what the turn will live by, and looks where it stands, if there is a reason to.
    async fn stay(
        &self,
        stand: &Stand,
        lasting: &ServerLease,
        news: &News,
        reason: Option<Reason>,
    ) -> Result<Option<Seen>> {
        let Stand { key, created, lease, behind, .. } = stand;
        let client = self.client;
        let (is_alive, is_lasting, seen) = tokio::join!(
            client.leases.refresh(lease, FRESH_PART),
            client.leases.refresh(lasting, LASTING_PART),
            async {
                let Some(reason) = reason else { return Ok(None) };
                let look = async {
                    let standing = &behind.standing;
                    if reason == Reason::Caution && self.stands_as_before(key, *created, standing).await? {
                        return Ok(None);
                    }
                    let last_ahead = self.last_ahead(behind, news);
                    self.claim(key, *created, last_ahead, lasting).await.map(Some)
                };
                // It may take longer than the place lives.
                tokio::select! {
                    biased;
                    seen = look => seen,
                    never = client.leases.keep_on(lease, KEEP_EVERY, FRESH_PART) => match never {},
                }
            }
        );
        if let Ok(false) = is_lasting {
            client.held.lost_with(lasting);
        }
        // Whoever has its turn has no need of a place any more, but of what it is to live by.
        if let Ok(Some(Seen::Claimed)) = seen {
            return if lasting.is_over() { Ok(Some(Seen::Gone)) } else { seen };
        }
        is_lasting?;
        if is_alive? { seen } else { Ok(Some(Seen::Gone)) }
    }

    /// Listens for who comes behind a place, to whom it is to be handed over.
    fn listens_for_the_next(&self, stand: &Stand) -> Option<Arc<Next>> {
        let listens = self.request.mode == Mode::Exclusive && stand.behind.length <= LISTENS_UP_TO;
        listens.then(|| Next::behind(self.client, self.client.keys.line(&self.request.name), stand.created))
    }

    /// Waits until the one ahead has given it its turn. Where its place is not known to live on for a while, that is for a claim to say.
    async fn is_given_the_turn(&self, place: &ServerLease, news: &News) {
        news.turn(place.id()).await;
        if self.client.now() >= place.renewed().saturating_add(place.lasts() / 2) {
            std::future::pending::<()>().await;
        }
    }

    /// Watches what is in the way.
    fn watch_for(&self, behind: &Standing, news: &Arc<News>) -> Watch {
        let what = match behind {
            // A holder that becomes a reader lets other readers in.
            Standing::Behind(key, created) => What {
                tells: match self.request.mode {
                    Mode::Exclusive => Tells::LastWords,
                    Mode::Shared => Tells::Changes,
                    Mode::Permit(_) => Tells::Ends,
                },
                ..What::end_of(key, *created)
            },
            Standing::Holds | Standing::BehindAny => {
                let range = self.client.keys.line(&self.request.name);
                What { range, after: 0, tells: Tells::Ends }
            }
        };
        self.client.watches.watch(what, Ear::Waiter(Arc::clone(news)))
    }

    /// Whether nothing has happened that concerns one that stands in line for itself alone. What this costs does not grow with the
    /// line, as what a claim costs does.
    async fn stands_as_before(&self, key: &[u8], created: i64, behind: &Standing) -> Result<bool> {
        let (Mode::Exclusive, Standing::Behind(ahead, created_ahead)) = (self.request.mode, behind) else {
            return Ok(false);
        };
        let batch = &self.client.batch;
        let (own, ahead) = tokio::try_join!(batch.look(key.to_vec()), batch.look(ahead.clone()))?;
        Ok(own == created && ahead == *created_ahead)
    }

    /// The key that alone is in the way of one that stands in line for itself alone: nobody else was ahead when it joined, or the one
    /// directly ahead has held alone. Nobody comes to be ahead later.
    fn last_ahead<'a>(&self, behind: &'a Behind, news: &News) -> Option<(&'a [u8], i64)> {
        match &behind.standing {
            Standing::Behind(key, created) if self.request.mode == Mode::Exclusive => {
                (behind.is_only || news.is_front()).then_some((key, *created))
            }
            _ => None,
        }
    }

    /// Looks where it stands, and claims the turn if it has come: by a write that finds its own key as it was created. A read
    /// would not do: after a pause a server may answer it with what was. That nobody is ahead any more stays true once it is.
    ///
    /// To compare the whole line costs as much as it is long; where a single key is known to be all that is left of it, that is
    /// compared.
    async fn claim(
        &self,
        key: &[u8],
        created: i64,
        last_ahead: Option<(&[u8], i64)>,
        lasting: &ServerLease,
    ) -> Result<Seen> {
        let (client, mode) = (self.client, self.request.mode);
        let line = client.keys.line(&self.request.name);
        let odd = || error::odd_answer("a line without the place that was found", client.servers.shown());
        let seen = |answer: &TxnResponse| {
            let found = ops::found(answer, 0).ok_or_else(odd)?;
            let Some((_, behind)) = look(mode, key, found) else { return Ok(Seen::Gone) };
            Ok(Seen::Behind(behind, ops::revision(answer)))
        };
        let is_there = ops::created_at(key, created);
        let claim = ops::move_to(key, lasting.id());
        let look = ops::range(ahead(mode, &line, created));
        if mode == Mode::Exclusive {
            let nobody_ahead = match last_ahead {
                Some((last, created)) => ops::is_gone(last, created),
                None => ops::is_first(&line, created),
            };
            let txn = TxnRequest {
                compare: vec![is_there, nobody_ahead],
                success: vec![claim],
                failure: vec![look],
            };
            let answer = client.batch.change(&self.request.name, txn).await?;
            return if answer.succeeded { Ok(Seen::Claimed) } else { seen(&answer) };
        }
        let txn = TxnRequest { success: vec![look], ..TxnRequest::default() };
        match seen(&client.servers.call(TXN, &txn).await?)? {
            Seen::Behind(Behind { standing: Standing::Holds, .. }, _) => {}
            waits => return Ok(waits),
        }
        let txn = TxnRequest { compare: vec![is_there], success: vec![claim], failure: Vec::new() };
        let answer = client.batch.change(&self.request.name, txn).await?;
        Ok(if answer.succeeded { Seen::Claimed } else { Seen::Gone })
    }

    /// The lease of a place at the front.
    fn grant(&mut self, granted: Granted) -> Result<Attempt> {
        let Granted { key, created, lease, sent, next } = granted;
        let client = self.client;
        let AcquireRequest { name, nonce, ttl, .. } = &*self.request;
        let token = line::token(created, *nonce).ok_or_else(|| {
            error::odd_answer("a revision that is no number of a grant", client.servers.shown())
        })?;
        let counted_from = sent.min(lease.renewed());
        let granted = Lease::new(LeaseKey::new(name.clone(), *nonce, *ttl), token, counted_from);
        // One that was granted as soon as it stood in line lives as long as a place, until it is renewed.
        let granted = granted.offered_for(lease.lasts());
        if granted.deadline() <= client.now() {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the cluster's answer came when the lease that it granted was over: it is overloaded or cut off",
            ));
        }
        let holding = Holding {
            name: name.clone(),
            key: key.clone(),
            slot: Arc::clone(&self.slot),
            created,
            lease,
            deadline: granted.deadline(),
            next,
        };
        let watch = client.watches.watch(What::end_of(&key, created), client.ear_of(*nonce));
        if client.held.insert(*nonce, holding, watch) {
            client.look_after_leases();
        }
        Ok(Attempt::Granted(granted))
    }

    /// Sees to it that nothing is left of a key: a claim whose answer was lost may have moved it to a lease that lives on.
    async fn forget(&mut self, key: &[u8]) -> Result<()> {
        self.client.delete(&self.request.name, key).await?;
        self.may_stand = None;
        Ok(())
    }

    /// Leaves the line.
    async fn give_up(&mut self, key: &[u8]) -> Result<Attempt> {
        let client = self.client;
        let line = client.keys.line(&self.request.name);
        let txn =
            TxnRequest { success: vec![ops::delete(key), ops::range(front(&line))], ..TxnRequest::default() };
        match client.batch.change(&self.request.name, txn).await {
            Ok(answer) => {
                let odd = || error::odd_answer("a line that is none", client.servers.shown());
                self.may_stand = None;
                self.slot.is_gone();
                Ok(Attempt::Busy(contention(&answer, 1).ok_or_else(odd)?))
            }
            // The line is left in the background, where nobody waits for it.
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                self.withdraw_in_background();
                self.may_stand = None;
                Ok(Attempt::Busy(Contention::default()))
            }
            Err(error) => Err(error),
        }
    }

    fn withdrawal(&self) -> Withdrawal {
        Withdrawal {
            name: self.request.name.clone(),
            key: self.may_stand.clone().unwrap_or_default(),
            nonce: self.request.nonce,
            ttl: self.request.ttl.as_duration(),
        }
    }

    fn withdraw_in_background(&self) {
        let (client, withdrawal) = (Arc::clone(self.client), self.withdrawal());
        self.client.runtime.spawn(async move { client.withdraw(withdrawal).await });
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.settled && self.may_stand.is_some() {
            self.withdraw_in_background();
        }
    }
}

/// Why one that stands in line looks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// It has heard something.
    News,
    /// It may have missed something, or it is time.
    Caution,
}

/// What one that stands in line sees.
enum Seen {
    /// Its key is not there any more.
    Gone,
    /// Where it stands, at this revision.
    Behind(Behind, i64),
    /// Its turn has come, and it has claimed it.
    Claimed,
}

/// What has to be read of a line to know where one stands that was created at this revision; at zero, as the last one. An
/// exclusive lock is behind the one before it, whoever that is, so that the length of the line costs nothing.
fn ahead(mode: Mode, line: &Range, created: i64) -> RangeRequest {
    let range = RangeRequest { max_create_revision: created, ..ops::get_range(line) };
    match mode {
        Mode::Exclusive => RangeRequest { limit: 2, keys_only: true, ..ops::youngest_first(range) },
        Mode::Shared | Mode::Permit(_) => ops::oldest_first(range),
    }
}

/// Those at the front of the line.
fn front(line: &Range) -> RangeRequest {
    RangeRequest { limit: FRONT, ..ops::oldest_first(ops::get_range(line)) }
}

/// When its own place was created, and where that stands, by what [`ahead`] found; `None` if it is not there.
fn look(mode: Mode, key: &[u8], found: &RangeResponse) -> Option<(i64, Behind)> {
    let mut places: Vec<Place> = found.kvs.iter().map(Place::read).collect();
    places.sort_by(|one, two| (one.created, &one.key).cmp(&(two.created, &two.key)));
    let own = places.iter().position(|place| place.key == key)?;
    let standing = line::standing(mode, &places[..own]);
    // It is said of how many keys these are.
    let is_only = own == 1 && found.count == 2;
    let length = u32::try_from(found.count).unwrap_or(u32::MAX);
    Some((places[own].created, Behind { standing, is_only, length }))
}

/// Who is in the way, by what [`front`] found.
fn contention(answer: &TxnResponse, index: usize) -> Option<Contention> {
    let found = ops::found(answer, index)?;
    let front: Vec<Place> = found.kvs.iter().map(Place::read).collect();
    let holding = line::holding(&front);
    let holders: Vec<_> = front.into_iter().take(holding).map(|place| place.holder).collect();
    let waiters = usize::try_from(found.count).ok()?.saturating_sub(holders.len());
    Some(Contention::new(holders, waiters))
}
