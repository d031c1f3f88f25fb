//! How leases are kept: each for itself, while what is below shares keep-alives, looks and changes.

use std::sync::Arc;

use ringfence_core::{BootInstant, Error, ErrorKind, LeaseKey, Mode, Renewal, Result};

use crate::backend::Client;
use crate::batch::RANGE;
use crate::error;
use crate::held::Holding;
use crate::leases::ServerLease;
use crate::line::{self, Place};
use crate::ops;
use crate::proto::{RangeResponse, RequestOp, TxnRequest};

impl Client {
    /// Renews leases: one keep-alive for each lease of the server, and one look at all keys.
    pub(crate) async fn renew(self: &Arc<Self>, leases: &[LeaseKey]) -> Result<Vec<Renewal>> {
        let since = self.now();
        let renewals = match leases {
            [lease] => vec![self.renew_one(lease, since).await],
            leases => {
                let renew =
                    |client: Arc<Self>, lease: LeaseKey| async move { client.renew_one(&lease, since).await };
                self.each(leases.iter().cloned(), renew).await
            }
        };
        if let Some(Err(error)) = renewals.first()
            && renewals.iter().all(Result::is_err)
        {
            return Err(error.clone());
        }
        let renewal = |renewal| match renewal {
            Ok(renewal) => renewal,
            Err(error) => {
                tracing::warn!(%error, "some leases of a renewal have no answer");
                Renewal::Unknown
            }
        };
        Ok(renewals.into_iter().map(renewal).collect())
    }

    async fn renew_one(&self, lease: &LeaseKey, since: BootInstant) -> Result<Renewal> {
        let until = since.saturating_add(lease.ttl.as_duration());
        let Some(holding) = self.held.renewing(lease.nonce, since, until) else { return Ok(Renewal::Lost) };
        let lives = if holding.lease.lasts() < lease.ttl.as_duration() {
            let lasting = self.leases.get(lease.ttl.as_duration()).await?;
            let claim = ops::move_to(&holding.key, lasting.id());
            self.change_held(lease, &holding, lasting, claim, since).await?
        } else {
            let (lives, created) =
                tokio::join!(self.keep_held(&holding.lease, since), self.batch.look(holding.key.clone()));
            // What is known to be gone is gone, whatever else is not known.
            match (lives, created) {
                (Ok(false), _) => false,
                (_, Ok(created)) if created != holding.created => false,
                (lives, created) => created.and(lives)?,
            }
        };
        Ok(self.settle(lease, lives, until))
    }

    /// Turns an exclusive lease into a shared one.
    pub(crate) async fn downgrade(&self, lease: &LeaseKey) -> Result<Renewal> {
        let since = self.now();
        let ttl = lease.ttl.as_duration();
        let until = since.saturating_add(ttl);
        let Some(holding) = self.held.renewing(lease.nonce, since, until) else { return Ok(Renewal::Lost) };
        let found: RangeResponse =
            self.servers.call(RANGE, &ops::get(&holding.key)).await.map_err(Error::without_effect)?;
        let place = found.kvs.first().map(Place::read).filter(|place| place.created == holding.created);
        let Some(place) = place else { return Ok(self.settle(lease, false, until)) };
        let lasting = self.leases.get(ttl).await?;
        let change =
            ops::put(&holding.key, line::value(Mode::Shared, ttl, lease.nonce, &place.holder), lasting.id());
        let lives = self.change_held(lease, &holding, lasting, change, since).await?;
        Ok(self.settle(lease, lives, until))
    }

    /// Makes a change of a key that gives it this lease to live by, and keeps that alive. Says whether both live.
    async fn change_held(
        &self,
        lease: &LeaseKey,
        holding: &Holding,
        lasting: Arc<ServerLease>,
        change: RequestOp,
        since: BootInstant,
    ) -> Result<bool> {
        let txn = TxnRequest {
            compare: vec![ops::created_at(&holding.key, holding.created)],
            success: vec![change],
            failure: Vec::new(),
        };
        let (changed, lives) =
            tokio::join!(self.batch.change(&holding.name, txn), self.keep_held(&lasting, since));
        let changed = match changed {
            Err(error) if error::is_of_lease(&error) => {
                lasting.end();
                self.held.lost_with(&lasting);
                // The key lives by what it lived by, and there is another lease the next time.
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "the cluster has ended a lease that was to be lived by",
                ));
            }
            changed => changed?.succeeded,
        };
        if !changed {
            return Ok(false);
        }
        self.held.lives_by(lease.nonce, &lasting);
        // The change was made, whatever is known of what it lives by.
        lives.map_err(Error::with_unknown_effect)
    }

    /// Keeps a lease of the server alive, and tells everybody who lives by it where it is no more.
    pub(crate) async fn keep_held(&self, lease: &ServerLease, since: BootInstant) -> Result<bool> {
        let lives = lease.keep(since).await?;
        if !lives {
            self.held.lost_with(lease);
        }
        Ok(lives)
    }

    /// Notes what became of a lease.
    fn settle(&self, lease: &LeaseKey, lives: bool, until: BootInstant) -> Renewal {
        if lives {
            self.held.renewed(lease.nonce, until);
            Renewal::Renewed
        } else {
            self.held.lost(lease.nonce);
            Renewal::Lost
        }
    }
}
