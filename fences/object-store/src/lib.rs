//! A fence for objects of S3 and what is like it: a stale token is refused by the store itself, which compares before it writes.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence_core::Result<()> {
//! # let locks = ringfence::Locks::connect("memory:").await?;
//! # let store = object_store::memory::InMemory::new();
//! use ringfence_object_store::FencedObjects;
//!
//! let objects = FencedObjects::new(store, "fences/probes").await?;   // any `ObjectStore`; refused if it cannot compare
//! let report = objects.object("reports/2026.json")?;
//!
//! let guard = locks.lock("reports/2026").acquire().await?;           // of any backend
//! let mut open = report.open(guard.token()).await?;                  // fails for a token that was overtaken
//! assert_eq!(open.value(), None);
//! open.write(r#"{"sum": 1}"#).await?;                                // and so does this, if it was overtaken meanwhile
//! guard.release().await?;
//!
//! assert_eq!(report.read().await?.unwrap(), r#"{"sum": 1}"#);
//! # Ok(()) }
//! ```
//!
//! # How it works
//!
//! An object has its mark, the highest token that it has seen, in its metadata, under `ringfence`. To open an object is to put it
//! again as it stands, with the new mark, on condition that nobody has put anything meanwhile; and only what was read with that is
//! given out. A write is another put, on condition that nothing was put since. So whoever opens with a higher token takes the
//! condition away from everybody before him, and the fence-first gap is closed: what was opened cannot be changed by an older holder
//! any more.
//!
//! **A condition needs something that changes.** S3's ETag is a hash of the content: the same content with another mark has the
//! same ETag, and a late holder's condition would hold still. On a store like that, what is stored ends with [`SALT_BYTES`] bytes that
//! are drawn anew for each put: a line break, 16 hexadecimal digits and another line break. The metadata says `salt=18` then, and
//! whoever reads without this crate leaves them away. Which kind of store it is, [`FencedObjects::new`] finds out by trying.
//!
//! # What is not fenced
//!
//! Whoever puts or deletes the object without this crate: give nobody else the right to. A lifecycle rule that deletes it deletes its
//! mark. A put replaces the object's tags, its storage class and its access rules by those that the store gives to new objects; its
//! content type and the other headers that `object_store` knows as attributes stay.

mod failure;
mod object;
mod objects;
mod stamp;

pub use self::object::{FencedObject, OpenObject};
pub use self::objects::FencedObjects;
pub use self::stamp::SALT_BYTES;

/// The largest value, in bytes: 64 MiB. It is in memory as a whole, and it is put again each time that it is opened.
pub const VALUE_MAX: usize = 64 * 1024 * 1024;
