//! ZooKeeper as a backend of Ringfence: locks on the nodes that Curator's and kazoo's stand on, with tokens that an ensemble
//! agreed to.
//!
//! # On the wire
//! A lock is a container node, and whoever wants it makes an ephemeral, sequential child of it, whose name says what it wants:
//! `_c_<nonce>-lock-` exclusively, `_c_<nonce>-__READ__` to share, `_c_<nonce>-<N>-lease-` one of N permits. The one with the
//! lowest number holds, with those after it that are compatible with all before them (`line.rs`). The token's number is the
//! transaction that made the child, so it is given by the very step that takes the place, and rises whatever becomes of the
//! container. Records are persistent nodes, changed in one transaction with a look at the child of the token's lease.
//!
//! By default the container of a lock is `/ringfence/locks/<name>`, the name percent-encoded; with `?keys=verbatim` it is the
//! path that the name is, for sharing locks with other clients.
//!
//! # Sessions
//! A lease lives by a session, and all leases of one TTL by the same one (`sessions.rs`). The client keeps a session alive as long
//! as its process runs, as ZooKeeper wants it; so a lease that the hall does not renew any more is removed by the client itself,
//! when its TTL is over. A renewal is a transaction that changes nothing: that a majority agreed to it proves that the session
//! was alive after it was sent, which no ping proves that a server answers alone.
//!
//! # Round trips
//! | call | round trips |
//! |---|---|
//! | acquire, free | 1: the child is made and all children are listed at once |
//! | acquire, refused | 2 |
//! | acquire, after waiting | 2 to stand in line, none when the one before has left; 1 then for a permit, and for who has waited for half a TTL |
//! | renew, however many | 1 for each TTL |
//! | release | 1 for all |
//! | downgrade, inspect | 2 |
//! | evict | 3 |
//! | list | 1, and 2 for each lock of the page |
//! | open, write a record | 4 |
//! | read a record | 1 |
//! | the first call of a TTL, and the one after a connection broke | 1 more, and those of TCP |
//! | the first acquire of a name after its container was removed | 2 more |
//!
//! What a process asks at the same time shares writes (`batch.rs`); one that goes with others takes a round trip more to a server.
//! A waiter lists the children once, however long it waits for those before it, or is told of the last one alone where the line is long (`batch.rs`); it
//! looks after its place every 5 s, whatever happens. The transaction by which the one before leaves is its turn (`seek.rs`).
//!
//! # Faults
//! - **A lost reply.** A call that was under way when its connection broke has failed, and is never sent again. The session goes on
//!   in the next connection, in which everything that arrived in the earlier one has been done, and nothing more will be. So an
//!   acquire looks there for the child with its nonce: it goes on with it, or fails without effect. While no server answers, that
//!   waits until the session must be over; a request that waits for less ends when its wait does, and is withdrawn in the
//!   background, as does one that does not wait when nobody has answered for a while and a TTL.
//! - **A dropped future** is withdrawn in the background, in the same way. What was not sent yet never is.
//! - **A session that ended** has lost its leases: their holders are told when a server says so. Those who waited in it stand in line
//!   again, at the end.
//! - **A node that somebody removes** is seen by a watch, which is set when the lease is 0.1 s old, and its holder is told.
//! - **A server that is cut off from the others** renews nothing, and tells of no turn but of one that a majority has agreed to. That one
//!   counts from when its place was made, half a TTL ago at most; who has waited longer asks a majority before it holds.
//!   What a server hears of a session reaches the leader half a tick later; if the server is cut off in between, the leader ends the
//!   session earlier than the guard believes, by a quarter of the TTL and half a tick at most. Only the fence helps.
//! - **Lost data** begins the count of transactions anew, and the tokens with it.

mod backend;
mod batch;
mod checks;
mod error;
mod keys;
mod line;
mod options;
mod place;
mod records;
mod seek;
mod servers;
mod session;
mod sessions;
mod task;
mod tls;
mod view;
mod walk;
mod wire;

pub use backend::{ZooKeeperBackend, guarantees};
pub use options::PARAMS;
