//! The local store: fenced locks and records for all processes of one machine, with nothing to install.
//!
//! # What it does not promise
//!
//! It excludes the processes of *one machine*. A holder that is paused past its TTL runs on unaware, as with every lease:
//! only the fence (a record, or a resource of yours that checks the token) stops its writes. Tokens rise as long as the
//! disk keeps what it confirmed as written.
//!
//! # How it works
//!
//! All processes append to one log, and each folds it into the same [`Table`](ringfence_core::table::Table). One `write`
//! of whole frames is the only step that changes anything, so there is no critical section: a process that is stopped or
//! killed at any instant leaves nobody waiting. The steps, and what each costs:
//!
//! | operation | system calls of ours | disk syncs |
//! |---|---|---|
//! | acquire a free name | append, read | none; one for every 65,536 grants |
//! | release, renew (a batch), evict | append, read | none |
//! | wait for a turn | append, read; asleep until told | none |
//! | hand over to another process | append, read, one byte into its pipe; there: read it, read, append, read | none |
//! | open, write or remove a record | append, read | one, shared by all that wait for one |
//! | open the store | open, read the log (at most a few MiB) | one, before the first grant |
//!
//! - **Numbers.** Grant numbers come out of a range that was made durable beforehand. A process that opens the store
//!   begins a new range, because it cannot know whether the power was lost since the last entry.
//! - **Death.** A process's session is a named pipe. The kernel tells its neighbours in line when the last descriptor of
//!   it is closed. A child that inherited it (see `Backend::lifeline`) keeps the leases alive until their TTL, no longer.
//! - **Wake-up.** Whoever releases writes a byte into the pipe of the next in line. A poll every quarter of a second is the
//!   net under a wake-up that its sender was stopped or killed before sending.
//! - **A paused waiter.** A turn that is not claimed within a second passes to the next one.
//!
//! Linux only: it uses named pipes opened for reading and writing, `CLOCK_BOOTTIME` and `fallocate`.

mod backend;
mod checks;
mod directory;
mod durable;
mod frame;
mod log;
mod records;
mod segment;
mod session;

pub use backend::{LocalBackend, guarantees};
pub use directory::default_directory;
