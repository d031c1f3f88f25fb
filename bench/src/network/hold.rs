//! What 10,000 held leases cost while nothing happens to them.

use std::process::Command;
use std::time::Duration;

use ringfence::Locks;
use serde::{Deserialize, Serialize};

use crate::contender::client::Servers;
use crate::contender::word;
use crate::contest::Contest;
use crate::held::cpu_seconds;

pub(crate) const LEASES: usize = 10_000;

/// Short, so that there are many renewals in a short run.
pub(crate) const LEASE: Duration = Duration::from_secs(6);

/// How many are asked for at a time.
const TOGETHER: usize = 100;

/// A process that holds many leases for a while.
#[derive(Debug, clap::Args)]
pub(crate) struct Hold {
    #[command(flatten)]
    servers: Servers,
    #[arg(long)]
    seconds: u64,
    /// By a task for each lease, of rslock, and not by ours.
    #[cfg(feature = "peers")]
    #[arg(long)]
    by_tasks: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    cpu_seconds: f64,
    /// How many leases were gone at the end.
    lost: usize,
}

/// What holding the leases took.
pub(crate) struct Held {
    /// Of a core, in percent.
    pub(crate) processor: f64,
    pub(crate) lost: usize,
    pub(crate) counted: Vec<usize>,
}

impl Hold {
    pub(crate) fn run(self) {
        let names: Vec<String> = (0..LEASES).map(|number| format!("bench/held/{number}")).collect();
        crate::small_runtime().block_on(async {
            #[cfg(feature = "peers")]
            if self.by_tasks {
                crate::redis::crates::keep_by_tasks(&self.servers, names, LEASE).await;
                return self.measure(|| 0).await;
            }
            let locks = Locks::connect(&self.servers.url()).await.expect("a server");
            let mut guards = Vec::with_capacity(LEASES);
            for names in names.chunks(TOGETHER) {
                let ask = |name: &String| tokio::spawn(locks.lock(name).ttl(LEASE).acquire());
                let asking: Vec<_> = names.iter().map(ask).collect();
                for asked in asking {
                    guards.push(asked.await.expect("a task").expect("a lock"));
                }
            }
            self.measure(|| guards.iter().filter(|guard| !guard.is_held()).count()).await;
        });
    }

    async fn measure(&self, lost: impl Fn() -> usize) {
        word::wait();
        let before = cpu_seconds();
        tokio::time::sleep(Duration::from_secs(self.seconds)).await;
        word::report(&Outcome { cpu_seconds: cpu_seconds() - before, lost: lost() });
    }
}

/// Has a process hold the leases for so long, and counts meanwhile.
pub(crate) fn hold(port: u16, who: &[&str], length: Duration, count: impl Fn() -> Vec<usize>) -> Held {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["hold-on-server", "--servers", &port.to_string()]).args(who);
    command.args(["--seconds", &length.as_secs().to_string()]);
    let holder = Contest::prepare(vec![command]);
    let before = count();
    let holder = holder.go();
    std::thread::sleep(length);
    let counted = count().iter().zip(before).map(|(after, before)| after - before).collect();
    let outcomes: Vec<Outcome> = holder.outcomes();
    let Outcome { cpu_seconds, lost } = outcomes[0];
    Held { processor: 100.0 * cpu_seconds / length.as_secs_f64(), lost, counted }
}
