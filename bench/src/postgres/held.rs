//! What 10,000 held leases cost while nothing happens to them.

use std::time::Duration;

use super::RECIPES;
use super::server::Server;
use crate::network::hold::{Held, LEASE, LEASES, hold};
use crate::report::{Figure, Figures, Goal, Report};

pub(crate) fn measure(report: &mut Report, length: Duration) {
    let Some(server) = Server::start() else { return };
    let case = format!("postgres, {LEASES} leases of {} s held for {} s", LEASE.as_secs(), length.as_secs());
    // Ours renews three times in a TTL.
    #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
    let renewals = LEASES as f64 * 3.0 * length.as_secs_f64() / LEASE.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
    let held = |url: &str| {
        server.forget();
        let Held { processor, lost, counted } =
            hold(server.port(), &["--url", url], length, || vec![server.transactions()]);
        Figures::from([
            ("% of a core", processor),
            ("lost", lost as f64),
            ("transactions/renewal", counted[0] as f64 / renewals),
        ])
    };
    let runs = RECIPES.each_ref().map(|recipe| (recipe.ours.name, move || held(recipe.url)));
    let runs: Vec<(&'static str, &dyn Fn() -> Figures)> =
        runs.iter().map(|(name, run)| (*name, run as &dyn Fn() -> Figures)).collect();
    report.interleave(&case, 1, &runs);
    for recipe in &RECIPES {
        let ours = |name| Figure { case: &case, subject: recipe.ours.name, name };
        report.check(ours("transactions/renewal"), Goal::AtMost(1.0 / 20.0));
        report.check(ours("lost"), Goal::AtMost(0.0));
    }
}
