//! etcd as a backend of Ringfence.

mod acquire;
mod backend;
mod batch;
mod checks;
mod error;
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
mod tls;
mod view;
mod watch;

pub use backend::{EtcdBackend, guarantees};
pub use options::PARAMS;
