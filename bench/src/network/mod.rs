//! Locks on servers: what the cases of every system share. A subject is a process, or several, beside the server, whose tasks
//! take locks as [`LockClient`](crate::contender::client::LockClient) does, each a lock of its own or all the same.

pub(crate) mod figures;
pub(crate) mod hold;
pub(crate) mod meter;
mod ours;
pub(crate) mod subject;
pub(crate) mod whose;
