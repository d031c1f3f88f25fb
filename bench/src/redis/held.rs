//! What 10,000 held leases cost while nothing happens to them: kept in batches, and by a task each.

use std::process::Command;
use std::time::Duration;

use clap::ValueEnum;
use ringfence::Locks;
use serde::{Deserialize, Serialize};

use super::contender::Whose;
use super::server::Server;
use crate::contest::{self, Contest};
use crate::held::cpu_seconds;
#[cfg(feature = "peers")]
use crate::report::Goal;
use crate::report::{Figures, Report};

const LEASES: usize = 10_000;
/// Short, so that there are many renewals in a short run.
const LEASE: Duration = Duration::from_secs(6);

const OURS: &str = "ringfence redis";
#[cfg(feature = "peers")]
const BY_TASKS: &str = "rslock, a task each";

/// A process that holds many leases for a while.
#[derive(Debug, clap::Args)]
pub(crate) struct Hold {
    #[arg(long, value_enum)]
    whose: Whose,
    #[arg(long)]
    server: u16,
    #[arg(long)]
    seconds: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    cpu_seconds: f64,
}

impl Hold {
    pub(crate) fn run(self) {
        let names = (0..LEASES).map(|number| format!("bench/held/{number}"));
        crate::small_runtime().block_on(async {
            match self.whose {
                Whose::Ringfence => {
                    let locks = Locks::connect(&format!("redis://127.0.0.1:{}", self.server))
                        .await
                        .expect("a server");
                    let mut guards = Vec::with_capacity(LEASES);
                    for name in names {
                        guards.push(locks.lock(name).ttl(LEASE).acquire().await.expect("a lock"));
                    }
                    self.measure().await;
                    assert!(guards.iter().all(ringfence::Guard::is_held), "leases were lost");
                }
                #[cfg(feature = "peers")]
                Whose::Rslock => {
                    super::crates::keep_by_tasks(self.server, names, LEASE).await;
                    self.measure().await;
                }
                other => panic!("{other:?} keeps no leases"),
            }
        });
    }

    async fn measure(&self) {
        contest::wait_for_the_word();
        let before = cpu_seconds();
        tokio::time::sleep(Duration::from_secs(self.seconds)).await;
        contest::report(&Outcome { cpu_seconds: cpu_seconds() - before });
    }
}

pub(crate) fn measure(report: &mut Report, length: Duration) {
    let Some(server) = Server::start() else { return };
    let case = format!("redis, {LEASES} leases of {} s held for {} s", LEASE.as_secs(), length.as_secs());
    let ours = || hold(&server, Whose::Ringfence, length);
    #[cfg(feature = "peers")]
    {
        let by_tasks = || hold(&server, Whose::Rslock, length);
        report.interleave(&case, 1, &[(OURS, &ours), (BY_TASKS, &by_tasks)]);
        report.ratio(&case, "round trips/s", OURS, BY_TASKS, Goal::AtMost(1.0 / 20.0));
        report.ratio(&case, "% of a core", OURS, BY_TASKS, Goal::AtMost(1.0 / 5.0));
    }
    #[cfg(not(feature = "peers"))]
    report.interleave(&case, 1, &[(OURS, &ours)]);
}

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
fn hold(server: &Server, whose: Whose, length: Duration) -> Figures {
    server.forget();
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["redis-hold", "--whose", whose.to_possible_value().expect("a name").get_name()]).args([
        "--server",
        &server.port().to_string(),
        "--seconds",
        &length.as_secs().to_string(),
    ]);
    let holder = Contest::prepare(vec![command]);
    let before = server.called();
    let outcomes: Vec<Outcome> = holder.go();
    let called = server.called() - before;
    let keys: usize = server.command(&["dbsize"]).parse().expect("a number of keys");
    assert!(keys >= LEASES, "leases were lost: {keys} keys are left");
    let seconds = length.as_secs_f64();
    Figures::from([
        ("round trips/s", called as f64 / seconds),
        ("% of a core", 100.0 * outcomes[0].cpu_seconds / seconds),
    ])
}
