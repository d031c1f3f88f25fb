//! What people want who ask for a lock, each behind a fence and on every backend.
//!
//! Each stands on locks and records alone, in names of its own that begin with the pattern's: what a pattern does under
//! `report` never meets a lock that you call `report`.
