//! etcd as a backend of Ringfence: locks that a majority decides, durable tokens, a line without polling.
//!
//! # On the wire
//! Who holds a lock or waits for it has a key in the lock's range, `ringfence/lock/NAME!LEASE-NONCE`, and the order of the line is
//! that in which the keys were created, as `etcdctl lock` and the mutex of Go's package `concurrency` have it; the first holds. The
//! token is the revision at which the key was created. With `?keys=verbatim` the keys are `NAME/LEASE-NONCE`, so that those clients
//! and ours stand in one line.
//!
//! Whoever waits watches the key that is in its way and its own, on one stream for the whole process. The one that leaves gives the turn
//! to the next, if it knows who that is: its transaction deletes its own key, and changes the next one if that is as it was created.
//! Else the next one claims its turn by a transaction that writes, if its own key is as it was created and none in the line is older. A
//! read would not do.
//!
//! Leases of the server are shared by all locks of a process that have one TTL. A place in line lives by another one, of two seconds, so
//! that a waiter that is stopped or killed costs the next one seconds.
//!
//! # Round trips
//! | call | round trips |
//! |---|---|
//! | acquire, free or refused | 1; the first of a TTL 1 more |
//! | acquire, in line | 1 or 2 to join it; an event of a turn that is given; an event and 1 for one that is claimed, 2 for readers and permits |
//! | renew | 1 for each TTL, and 1 for every 128 leases, at the same time |
//! | release | 1 |
//! | downgrade, evict, inspect, open or write a record | 2 |
//! | list | 1 for every 1,000 keys, and 1 for each lease of a holder |
//! | read a record | 1 |
//! | connect | 3 |
//!
//! Changes of one process that come at the same time share transactions: one goes at once, what comes meanwhile goes together in
//! the next. Two are under way at most.
//!
//! # Faults
//! - **A member that does not answer** is left after 3 s, and the next one is asked. A keep-alive is waited for a sixth of the TTL.
//! - **No majority**: nothing is granted, renewed or given back; guards are lost at their deadlines.
//! - **A lost answer.** An acquire whose answer is lost is withdrawn before its error is returned, and cannot come back: it looks for
//!   a mark that the withdrawal leaves. That is tried for the TTL at most. A release whose answer is lost says that the effect
//!   is unknown.
//! - **A lease or a key that was removed** is told to its holder by the watch of its key, at the latest by the next renewal; where the
//!   stream of watches was broken meanwhile, as soon as it is back. A key is watched from when it has been held for 50 to 100 ms, and
//!   looked at then.
//! - **A lease that is not renewed** is ended by this process at its deadline, where others keep the server's lease alive that it
//!   shares. It can be renewed and downgraded by the client that got it, and by no other.
//! - **A waiter that loses its place**, because nobody could keep it alive for two seconds, stands in line again, at the end.

mod acquire;
mod backend;
mod batch;
mod checks;
mod error;
mod follower;
mod held;
mod keys;
mod leases;
mod line;
mod ops;
mod options;
#[rustfmt::skip]
#[expect(clippy::pedantic, unreachable_pub, reason = "it is written by a program, from proto/etcd.proto")]
mod proto;
mod records;
mod renew;
mod servers;
mod slots;
mod tls;
mod view;
mod watch;

pub use backend::{EtcdBackend, guarantees};
pub use options::PARAMS;
