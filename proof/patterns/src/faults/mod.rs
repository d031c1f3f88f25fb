//! The patterns under faults, with processes: one works by a pattern, and is stopped past its lease and goes on, is killed, or is cut
//! off from its server; another one takes over. What they did stands in [fenced records](ringfence_servers::EFFECTS), and it is
//! these that are judged, beside what the pattern says of itself.

mod held;
mod partitions;
mod permits;
mod readers_writers;
mod scene;
mod several;
mod versioned;

use ringfence_testkit::{Harness, Verdict};

use self::held::{Held, take_over};

/// A store that processes reach over a network.
pub trait Reach: Harness {
    /// The URL by which a process connects to it.
    fn url(&self) -> String;

    /// The ports of its servers as they stand in the URL, where the network can be cut. None: there is no network.
    fn ports(&self) -> Vec<u16> {
        Vec::new()
    }
}

/// Expands to one `#[test]` for each pattern, named after it. The expression makes a [`Reach`], as for
/// [`patterns!`](crate::patterns).
#[macro_export]
macro_rules! faults {
    ($reach:expr $(,)?) => {
        $crate::faults! {
            ($reach)
            once leader idempotency versioned partitions lock_delay permits rate readers_writers several
        }
    };
    (($reach:expr) $($pattern:ident)*) => {
        $(
            #[test]
            fn $pattern() {
                ::ringfence_testkit::run(stringify!($pattern), async { $reach }, |reach| {
                    ::std::boxed::Box::pin($crate::faults::$pattern(reach))
                });
            }
        )*
    };
}

/// What happens to the one that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Stopped,
    Killed,
    CutOff,
}

/// A run that is late takes down no end; the one after it does, in the same window, and the late one has crashed.
pub async fn once(reach: &dyn Reach) -> Verdict {
    under_each!(reach, |fault| take_over(reach, Held::Once, fault))
}

/// A leader that is late proclaims nothing over its successor's, whose term is a later one.
pub async fn leader(reach: &dyn Reach) -> Verdict {
    under_each!(reach, |fault| take_over(reach, Held::Leader, fault))
}

/// The result of a worker that is late is not stored: its successor's is what everybody gets.
pub async fn idempotency(reach: &dyn Reach) -> Verdict {
    under_each!(reach, |fault| take_over(reach, Held::Idempotency, fault))
}

/// Nobody gets the lock before the delay is over.
pub async fn lock_delay(reach: &dyn Reach) -> Verdict {
    under_each!(reach, |fault| take_over(reach, Held::Delayed, fault))
}

/// An update in the middle of which its process is struck is there or not, and in nobody's way for longer than its lease.
pub async fn versioned(reach: &dyn Reach) -> Verdict {
    under_each!(reach, |fault| versioned::goes_on(reach, fault))
}

/// Each partition has another owner soon, with a higher token, and the one before does nothing more in it.
pub async fn partitions(reach: &dyn Reach) -> Verdict {
    under_each!(reach, |fault| partitions::move_on(reach, fault))
}

/// A permit is somebody else's in time, no more hold than may, and who is late does nothing behind the fence and frees nobody's.
pub async fn permits(reach: &dyn Reach) -> Verdict {
    under_each!(reach, |fault| permits::come_back(reach, fault))
}

/// A permit that was left to lapse is spent for a TTL whatever becomes of who spent it, and for not much longer.
pub async fn rate(reach: &dyn Reach) -> Verdict {
    under_each!(reach, |fault| permits::stay_spent(reach, fault))
}

/// Readers follow a writer together, and a writer follows readers when the last of them is gone.
pub async fn readers_writers(reach: &dyn Reach) -> Verdict {
    let written = under_each!(reach, |fault| readers_writers::read_on(reach, fault));
    let read = under_each!(reach, |fault| readers_writers::write_after(reach, fault));
    written.and(read)
}

/// All of several locks are somebody else's in time, each with a fence of its own; and one that had not got all of them yet has none.
pub async fn several(reach: &dyn Reach) -> Verdict {
    let held = under_each!(reach, |fault| several::go_on(reach, fault));
    let asked = under_each!(reach, |fault| several::are_given_up(reach, fault));
    held.and(asked)
}

/// Under all faults at once, each with a name of its own.
macro_rules! under_each {
    ($reach:ident, |$fault:ident| $case:expr) => {{
        let under = async |$fault: Fault| {
            let has_a_network = !$reach.ports().is_empty();
            if $fault == Fault::CutOff && !has_a_network { Ok(()) } else { $case.await }
        };
        let (stopped, killed, cut_off) =
            tokio::join!(under(Fault::Stopped), under(Fault::Killed), under(Fault::CutOff));
        stopped.and(killed).and(cut_off)
    }};
}
use under_each;
