//! Several locks at a time, all or nothing, each with effects of its own.

use std::time::Duration;

use ringfence::Locks;
use ringfence_servers::{Event, SEVERAL, one_of_several};
use tokio::sync::mpsc;

use crate::{Numbered, append_to, now, provable, report, say, watch};

/// Holds all of them until its orders end; one event says so of each, in the order of their numbers. Where they cannot be had
/// it says why.
pub(crate) async fn hold(
    locks: &Locks,
    name: &str,
    ttl: Duration,
    mut orders: mpsc::UnboundedReceiver<String>,
) {
    say(&Event::Waiting { at: now() });
    let names = (0..SEVERAL).map(|number| one_of_several(name, number));
    let guards = match locks.all(names).ttl(ttl).acquire().await {
        Ok(guards) => guards,
        Err(error) => {
            report(Err(error));
            // It lives on, so that whatever it did not let go of would be held.
            while orders.recv().await.is_some() {}
            return;
        }
    };
    let mut last = Numbered::new();
    for (number, guard) in (0..).zip(&guards) {
        let token = guard.token();
        say(&Event::Held { token, at: provable(guard) });
        last.insert(number, (guard.name().clone(), token));
    }
    let _watch = watch(guards.lost());
    while let Some(order) = orders.recv().await {
        report(append_to(locks, &last, &order).await);
    }
}
