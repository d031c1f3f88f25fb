//! An attempt, from its first question to its lease.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, BootInstant, Contention, Effect, Error, ErrorKind, FencingToken, Lease,
    LeaseKey, Nonce, Result, Wait,
};

use super::Client;
use super::calls::{Answer, Asked, Verb};
use super::line::{Stand, Standing};
use crate::patience::Patience;
use crate::rows;

/// For how long a turn stands that was given to a waiter: `offer_ms()` in leases.sql.
const OFFER: Duration = Duration::from_millis(750);

/// With less than this left of its turn, a waiter asks first whether it still has it.
const OFFER_LEFT_MIN: Duration = Duration::from_millis(250);

/// Asks for a lease. One that waits, and whose attempt fails because its connections do, makes another one, until its time is over.
/// That has a nonce of its own: what was withdrawn cannot come back, and what stood in line by the name of a connection that ended
/// is gone with it.
pub(super) async fn acquire(client: &Arc<Client>, mut request: AcquireRequest) -> Result<Attempt> {
    let mut patience = Patience::new(request.ttl);
    loop {
        let error = match Seek::new(client, &mut request, &mut patience).run().await {
            Err(error) if error.kind() == ErrorKind::Unavailable && error.effect() == Effect::None => error,
            outcome => return outcome,
        };
        let now = client.now();
        let Wait::Until(deadline) = request.wait else { return Err(error) };
        let Some(pause) = patience.outlasts(&error, now) else { return Err(error) };
        tracing::debug!(%error, "a waiter has no place in line for now");
        let again = now.saturating_add(pause).min(deadline);
        while let Some(nap) = client.clock.nap(again) {
            tokio::select! {
                biased;
                () = &mut request.abandoned => return Ok(Attempt::Busy(Contention::default())),
                () = tokio::time::sleep(nap) => {}
            }
        }
        if client.now() >= deadline {
            return Ok(Attempt::Busy(Contention::default()));
        }
        request.nonce = Nonce::random();
    }
}

/// An attempt under way; withdrawn in the background if its future is dropped.
struct Seek<'a> {
    client: &'a Arc<Client>,
    request: &'a mut AcquireRequest,
    patience: &'a mut Patience,
    standing: Standing,
    /// What our process is called in the rows of this attempt.
    session: i64,
    /// Whether the server may know of it.
    may_stand: bool,
    settled: bool,
}

impl<'a> Seek<'a> {
    fn new(client: &'a Arc<Client>, request: &'a mut AcquireRequest, patience: &'a mut Patience) -> Self {
        let standing = client.line.enter(request.name.clone(), request.nonce);
        let session = client.ears.session();
        Self { client, request, patience, standing, session, may_stand: false, settled: false }
    }

    /// # Cancel safety
    /// Dropped, it is withdrawn in the background.
    async fn run(mut self) -> Result<Attempt> {
        let outcome = match self.seek().await {
            Err(error) if self.may_stand => {
                let is_undone = Box::pin(self.client.withdraw(&self.key())).await;
                Err(if is_undone { error.without_effect() } else { error.with_unknown_effect() })
            }
            outcome => outcome,
        };
        self.settled = true;
        outcome
    }

    /// Asks, and waits for its turn as long as the request does.
    async fn seek(&mut self) -> Result<Attempt> {
        let mut contention = Contention::default();
        loop {
            let asked = self.client.now();
            let deadline = match self.request.wait {
                Wait::Until(deadline) if asked < deadline => Some(deadline),
                _ => None,
            };
            let place = self.standing.place();
            let verb = match (deadline, place) {
                (None, Some(_)) => return Box::pin(self.give_up(contention)).await,
                (None, None) => Verb::Try,
                (Some(_), None) => Verb::Queue,
                // One that comes late, when this attempt is over, must not begin it again.
                (Some(_), Some(_)) => Verb::Look,
            };
            let answer = self.ask(verb).await;
            if answer.is_ok() {
                self.patience.heard(asked);
            }
            match answer {
                Ok(Answer::Granted { number, is_new }) => {
                    let lease = self.lease(number, asked)?;
                    if lease.deadline() <= self.client.now() {
                        return Err(Error::new(
                            ErrorKind::Unavailable,
                            "the answer came after its lease was over",
                        ));
                    }
                    if is_new {
                        self.client.met_a_new_name();
                    }
                    return self.client.ears.keep(lease, self.session).map(Attempt::Granted);
                }
                Ok(Answer::Busy(contention)) => return Ok(Attempt::Busy(contention)),
                Ok(Answer::Waits(last, others)) => {
                    self.standing.stands(asked, last);
                    self.client.ears.open();
                    self.client.look_after_the_line();
                    contention = others;
                }
                Ok(Answer::Gone) => {
                    self.standing.left();
                    continue;
                }
                Ok(Answer::Full) => {
                    let name = self.request.name.as_str();
                    let why = format!("too many wait for {name:?} already; try again later");
                    return Err(Error::new(ErrorKind::Full, why));
                }
                Ok(Answer::Withdrawn) => {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        "the attempt was withdrawn, or took too long",
                    ));
                }
                // The place stands for a while without us, so a server that is away for a moment costs nobody a place.
                Err(error) if error.kind() == ErrorKind::Unavailable && self.may_wait() => {
                    tracing::debug!(%error, "a waiter cannot look after its place");
                }
                Err(error) => return Err(error),
            }
            let Some(deadline) = deadline else { continue };
            if let Some(lease) = self.wait_for_turn(deadline).await? {
                return Ok(lease);
            }
        }
    }

    /// Waits until there is something to ask again, or the answer is known without.
    async fn wait_for_turn(&mut self, deadline: BootInstant) -> Result<Option<Attempt>> {
        // If nobody could look for so long, it asks by itself, and learns why. While somebody looks for all of this process, the
        // end of it moves on.
        while let Some(nap) = self.client.clock.nap(self.unseen_at().min(deadline)) {
            tokio::select! {
                biased;
                () = &mut self.request.abandoned => return Box::pin(self.give_up(Contention::default())).await.map(Some),
                () = self.standing.called() => break,
                () = tokio::time::sleep(nap) => {}
            }
        }
        let Some((number, Stand { seen, .. })) = self.standing.turn() else { return Ok(None) };
        let lease = self.lease(number, seen)?.offered_for(OFFER);
        let is_enough = lease.deadline().saturating_since(self.client.now()) >= OFFER_LEFT_MIN;
        if !is_enough {
            return Ok(None);
        }
        self.client.ears.keep(lease, self.session).map(|lease| Some(Attempt::Granted(lease)))
    }

    /// Whether its place may stand still.
    fn may_wait(&self) -> bool {
        self.client.now() < self.unseen_at()
    }

    /// Until when its place may stand without having been looked after.
    fn unseen_at(&self) -> BootInstant {
        let ttl = self.request.ttl.as_duration();
        self.standing.place().map_or(BootInstant::from_nanos(0), |place| place.seen.saturating_add(ttl))
    }

    async fn ask(&mut self, verb: Verb) -> Result<Answer> {
        self.client.ears.light_the_beacon().await?;
        // Who stands in line does so under the name that it came by.
        if verb != Verb::Look {
            self.session = self.client.ears.session();
        }
        let asked = Asked {
            verb,
            lease: self.key(),
            mode: rows::write_mode(self.request.mode),
            holder: rows::write_holder(&self.request.holder),
            session: self.session,
        };
        // From here on it may be sent, whatever becomes of this future.
        let could_stand = std::mem::replace(&mut self.may_stand, true);
        let answer = self.client.attempts.send(asked).await;
        self.may_stand =
            could_stand || answer.as_ref().map_or_else(|error| error.effect() == Effect::Unknown, |_| true);
        answer
    }

    fn key(&self) -> LeaseKey {
        let AcquireRequest { name, nonce, ttl, .. } = &*self.request;
        LeaseKey::new(name.clone(), *nonce, *ttl)
    }

    fn lease(&self, number: u64, counted_from: BootInstant) -> Result<Lease> {
        Ok(Lease::new(self.key(), FencingToken::of_grant(number, self.request.nonce)?, counted_from))
    }

    /// Leaves the line; a turn that came in this moment is given back.
    async fn give_up(&mut self, contention: Contention) -> Result<Attempt> {
        match self.client.release(&[self.key()]).await {
            Ok(_) => Ok(Attempt::Busy(contention)),
            // The line is left in the background, where nobody waits for it.
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                self.withdraw_in_background();
                Ok(Attempt::Busy(contention))
            }
            Err(error) => Err(error),
        }
    }

    fn withdraw_in_background(&self) {
        let (client, lease) = (Arc::clone(self.client), self.key());
        self.client.runtime.spawn(async move { client.withdraw(&lease).await });
    }
}

impl Drop for Seek<'_> {
    fn drop(&mut self) {
        if !self.settled && self.may_stand {
            self.withdraw_in_background();
        }
    }
}
