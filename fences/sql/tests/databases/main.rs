//! The same cases on PostgreSQL, MariaDB and SQLite, and what only one of them does.

mod mariadb;
mod page;
mod postgres;
mod sqlite;
mod stage;
