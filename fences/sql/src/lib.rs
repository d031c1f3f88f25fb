//! Fences for tables of PostgreSQL, MySQL, MariaDB and SQLite: a stale token is refused by the database that it would have written
//! to, in the transaction in which it would have.
//!
//! The lock may be of any service; its token is *admitted* to what it guards, in the caller's own transaction of `sqlx`:
//!
//! - to a row that has a column for it, [`FenceColumn`]: nothing but that column is needed;
//! - to any resource by its name, [`SideTable`]: where there is no such column, or more than a row is guarded.
//!
//! Admitting raises the mark, the highest token that the row or the resource has seen, and locks it until the transaction ends.
//! So the check and the work are committed together or not at all, and a token below the mark is refused with
//! [`ErrorKind::Stale`](ringfence_core::ErrorKind::Stale).
//!
//! **Admit first, then read what you are about to modify.** Until the new holder has admitted its token, the old one's still
//! passes, also after the new one has read. And whoever writes has to admit: a fence stops those who are late, and not those who do
//! not look. Of two that hold one lock, the later one's token wins, however late the earlier one wakes up.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let locks = ringfence::Locks::connect(&format!("local:{}", folder.path().join("locks").display())).await?;
//! # let file = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.path().join("shop.db")).create_if_missing(true);
//! # let pool = sqlx::SqlitePool::connect_with(file).await?;
//! # sqlx::query("CREATE TABLE parcels (id INTEGER PRIMARY KEY, state TEXT, fence_token BIGINT, fence_nonce TEXT)").execute(&pool).await?;
//! # sqlx::query("INSERT INTO parcels (id, state) VALUES (42, 'new')").execute(&pool).await?;
//! use ringfence_sql::{FenceColumn, Rows, commit};
//!
//! let fence = FenceColumn::new(Rows::new("parcels", "id")?, "fence_token")?.with_nonce("fence_nonce")?;
//! let guard = locks.lock("parcels/42").acquire().await?;             // of any backend
//! let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;            // SQLite; `pool.begin()` elsewhere
//! fence.admit(&mut tx, 42, guard.token()).await?;                    // fails for a token that was overtaken
//! sqlx::query("UPDATE parcels SET state = 'sent' WHERE id = 42").execute(&mut *tx).await?;
//! commit(tx).await?;                                                 // the check and the work, or neither
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! # Which isolation
//!
//! | | what a transaction that waited for the mark sees afterwards |
//! |---|---|
//! | PostgreSQL, READ COMMITTED (its default) | what the last holder committed |
//! | PostgreSQL, REPEATABLE READ and SERIALIZABLE | nothing: it fails with [`Conflict::SerializationFailure`] if the mark was raised after its snapshot. Run it again |
//! | MySQL and MariaDB, READ COMMITTED | what the last holder committed |
//! | MySQL and MariaDB, REPEATABLE READ (their default) | what the last holder committed, **if nothing was read before the token was admitted**. A plain `SELECT` before that takes the snapshot that all later ones show: admit first, or read by `SELECT … FOR UPDATE`, which shows what is |
//! | SQLite, `BEGIN IMMEDIATE` | what the last holder committed: one transaction writes at a time |
//! | SQLite, `BEGIN` | the same if nothing was read before; otherwise it fails with a [`Conflict`] if anybody has written since |
//!
//! In MySQL and MariaDB the tables have to be of InnoDB, because other engines neither lock rows nor roll back, and a statement that
//! changes the schema (`CREATE`, `ALTER`) commits the transaction that it is in, and with it lets the mark go.
//!
//! # When it fails
//!
//! An error of `admit` has no effect but that marks may be locked. Roll back; nothing of ours keeps a caller from committing
//! after an error that it did not look at. (After [`Conflict::Deadlock`], MySQL has rolled the transaction back already, and carries
//! out what follows on the connection each on its own.) [`Conflict::of`] tells which errors are worth another try, and
//! [`retry_on_conflict`] makes it.
//!
//! A mark that was raised in a transaction that is rolled back is as it was before, as everything in that transaction is: it
//! stands for committed work and for nothing else. Where a late holder is to be shut out before the work begins, admit in a
//! transaction of its own, and commit that.
//!
//! # Cancel safety
//! A future that is dropped may have locked or raised what it was to. It is undone with the transaction.

mod failure;
mod fence_column;
mod mark;
mod names;
mod side_table;
mod statement;
mod version_column;

pub use self::failure::{Conflict, commit, explain};
pub use self::fence_column::FenceColumn;
pub use self::names::{Key, Rows};
pub use self::side_table::SideTable;
pub use self::statement::{Dialect, Transaction};
pub use self::version_column::{VersionColumn, retry_on_conflict};
