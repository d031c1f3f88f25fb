//! What 10,000 held leases cost while nothing happens to them: kept in batches, and by a task each.

use std::time::Duration;

use super::server::Server;
use crate::network::hold::{Held, LEASE, LEASES, hold};
#[cfg(feature = "peers")]
use crate::report::Goal;
use crate::report::{Figures, Report};

const OURS: &str = "ringfence redis";
#[cfg(feature = "peers")]
const BY_TASKS: &str = "rslock, a task each";

pub(crate) fn measure(report: &mut Report, length: Duration) {
    let Some(server) = Server::start() else { return };
    let case = format!("redis, {LEASES} leases of {} s held for {} s", LEASE.as_secs(), length.as_secs());
    let ours = || held(&server, &["--url", "redis://HOSTS"], length);
    #[cfg(feature = "peers")]
    {
        let by_tasks = || held(&server, &["--by-tasks"], length);
        report.interleave(&case, 1, &[(OURS, &ours), (BY_TASKS, &by_tasks)]);
        report.ratio(&case, "round trips/s", OURS, BY_TASKS, Goal::AtMost(1.0 / 20.0));
        report.ratio(&case, "% of a core", OURS, BY_TASKS, Goal::AtMost(1.0 / 5.0));
    }
    #[cfg(not(feature = "peers"))]
    report.interleave(&case, 1, &[(OURS, &ours)]);
}

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
fn held(server: &Server, who: &[&str], length: Duration) -> Figures {
    server.forget();
    let Held { processor, lost, counted } = hold(server.port(), who, length, || vec![server.called()]);
    let keys: usize = server.command(&["dbsize"]).parse().expect("a number of keys");
    assert_eq!(lost, 0, "leases were lost");
    assert!(keys >= LEASES, "leases were lost: {keys} keys are left");
    Figures::from([("round trips/s", counted[0] as f64 / length.as_secs_f64()), ("% of a core", processor)])
}
