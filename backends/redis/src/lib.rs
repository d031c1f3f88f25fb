//! Redis and Valkey as a backend of Ringfence: locks that other clients respect, a line without polling, fencing tokens.
//!
//! # On the wire
//! An exclusive lock is the classic string key, `SET key value NX PX ttl`, whose value begins with the nonce of the attempt;
//! it is renewed and released only where that nonce still stands. So a lock that redis-py, node-redlock, redsync, rslock or
//! a bare `SET NX PX` took under the same key is respected, and they respect ours. Shared holders and permits are listed
//! beside the key, which then holds a marker that keeps the others out. Every change is one script, `lua/lock.lua`, called
//! by its hash.
//!
//! By default the key of a lock is `ringfence:{name}`, the name percent-encoded; with `?keys=verbatim` it is the name as it
//! stands, for sharing locks with other clients.
//!
//! # Round trips
//! | call | round trips |
//! |---|---|
//! | acquire, free or refused | 1 |
//! | acquire, after waiting | 1 to join the line, then none: the turn comes half a round trip after the release |
//! | renew, for up to 1,024 leases | 1 |
//! | release | 1, which hands over to the next in line as well; 2 where the server has a compare-and-delete and somebody has come to wait since the lock was found free |
//! | downgrade, evict, inspect | 1 |
//! | list | 1 for every 1,000 keys of the database, and 1 for each lock of the page |
//! | open, write, read a record | 1 |
//! | the first call, and the one after a connection broke | 4 more: TCP, the greeting, its check, the channel; TLS adds its own, Sentinels as many again |
//!
//! With `?replicas=N` a `WAIT` goes with each that gives or prolongs a lease, in the same round trip, which then takes as long as
//! the slowest of N replicas; a turn costs one round trip more, to be confirmed.
//!
//! In a cluster all keys of a lock are in one slot, and each call goes to the master that has it:
//!
//! | call | round trips in a cluster |
//! |---|---|
//! | acquire, after waiting | 3 to join the line (refused, listen, join), 1 where the process has listened to the lock within the last second |
//! | renew or release many leases | one call for each slot, all at the same time: 1, as slow as the slowest master |
//! | list | as above, on each master, and 1 to learn which those are |
//! | the first call to a slot that has moved | 1 more |
//!
//! Calls of one process that come at the same time share round trips: one goes at once, what comes meanwhile goes together in
//! the next, as one script. Two are under way at most. In a cluster each goes for itself.
//!
//! Who waits is told, and looks after its place beside that, in one change of a script: the first in line when the holder's lease would end, and every
//! 2 s; the second, which is to notice that the first takes no turn, every quarter of a second; the others up to once a second.
//!
//! Redlock, on several servers of which a quorum has to agree, makes the same changes on each of them, all at once:
//!
//! | call | round trips, each to all nodes at once |
//! |---|---|
//! | acquire, free | 1 where a quorum gives the number that it is asked for, else 2 |
//! | acquire, refused | 1, and 1 more to undo what was taken; whoever waits asks again, every 250 ms in the end |
//! | renew, downgrade, release, evict, inspect | 1 |
//! | open, write a record | 2 |
//! | read a record | 1, and 1 more where not all of a quorum have it yet |
//!
//! # Faults
//! - **The server's wall clock** ends leases: a step forward ends them early, a step back late. Only the fence helps.
//! - **Lost memory** (a restart without data, a failover, `FLUSHALL`) ends leases at once, and the count of grant numbers with
//!   them. Numbers go on from the server's clock, so they rise as long as it does not go back.
//! - **A failover** is followed: every connection asks the Sentinels and checks that the server is a primary. Leases that
//!   were not replicated are lost; `?replicas=N` makes that less likely, not impossible. The Sentinels tell us when they have chosen
//!   another one. Who is cut off from them together with the old primary hears nothing: it grants on beside the next one, and only the
//!   fence helps.
//! - **A cluster's slot that moves** takes its locks along. Until it has arrived, exclusive leases are renewed wherever they are;
//!   everything else that needs several keys of a lock waits, for 3 s at most, and then fails without effect. A waiter listens
//!   to the new master a round trip after it hears of the move; if its turn comes before that, it stands in line again.
//! - **A cluster's master that is lost** takes those locks along that its replica did not have. Calls for its slots fail until a
//!   replica has taken its place, and then find that by themselves. Locks on other masters are renewed all the while, as long
//!   as these serve: without `cluster-require-full-coverage no` they stop when a master is gone without a replica.
//! - **A lost reply.** An acquire whose answer is lost is withdrawn before its error is returned, and cannot come back: a
//!   command that was still under way finds that it was withdrawn. While the server is away that is tried again, for the TTL
//!   at most, so the error may come that late; a request that waits for less than that ends when its wait does. A release
//!   whose answer is lost is not tried again: its error says that the effect is unknown, and the lease ends at its TTL at the
//!   latest.
//! - **A lost connection** costs nobody a place in line, nor a lease: a call that was under way fails, the next one opens a new
//!   connection. One that answers nothing and does not end counts as lost after 3 s, so a lease outlives it if its TTL is 6 s
//!   or more.
//! - **A dead waiter** whose process was killed is passed over at once, because its connection is gone. One that is stopped
//!   or cut off costs the next one at most a second: a turn given to a waiter stands for 750 ms until it is renewed. A waiter
//!   that was alive all the same, and without a connection in just the moment of its turn, cannot be told from a dead one: it
//!   stands in line again, at the end.
//! - **Full memory.** A server that may not evict refuses to grant, with [`Full`](ringfence_core::ErrorKind::Full), and lets
//!   everybody renew, release and hand over. One that evicts loses locks, as if they were deleted: the holder learns of it at
//!   its next renewal.
//! - **An eviction** by an operator is told to the holder at once, where it is connected; else, and always in a cluster, its
//!   next renewal says so.

mod access;
mod backend;
mod channels;
mod checks;
mod cluster;
mod compare_and_delete;
mod error;
mod keys;
mod line;
mod link;
mod options;
mod records;
mod redlock;
mod route;
mod scripts;
mod sentinel;
mod servers;
mod tls;
mod tries;
mod view;

pub use backend::{RedisBackend, guarantees};
pub use options::{PARAMS, REDLOCK_PARAMS};
pub use redlock::{RedlockBackend, redlock_guarantees};
