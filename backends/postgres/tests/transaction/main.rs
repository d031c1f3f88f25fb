//! Locks and fences in transactions of the caller's own: by `tokio-postgres`, by `sqlx`, and by `psql`.

mod fences;
mod locks;
mod page;
mod rows;
mod stage;
mod tables;
