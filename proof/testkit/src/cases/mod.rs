//! The cases: one async function for each line of the contract, and one for each fault.
//!
//! A case panics where the backend breaks the contract. [`conformance!`](crate::conformance) makes tests of them; a
//! suite with rules of its own can walk through [`CONTRACT`] and [`FAULTS`].

mod acquire;
mod faults;
mod leases;
mod operator;
mod records;

use ringfence_core::BoxFuture;

pub use acquire::*;
pub use faults::*;
pub use leases::*;
pub use operator::*;
pub use records::*;

use crate::harness::{Harness, Verdict};

/// A case, as a list can hold it.
pub type Case = for<'a> fn(&'a dyn Harness) -> BoxFuture<'a, Verdict>;

/// Hands the names of all cases to a macro: first those named in the contract's documentation, then the faults.
#[doc(hidden)]
#[macro_export]
macro_rules! __with_every_case {
    ($then:ident $($arguments:tt)*) => {
        $crate::$then! {
            $($arguments)*
            [
                grants_a_free_name
                busy_is_a_value
                waits_for_release
                wait_ends_at_its_deadline
                abandoned_request_leaves_nothing
                sequences_rise
                first_come_first_served
                trying_does_not_overtake
                shared_holders_share
                a_waiting_writer_is_not_starved
                readers_share_one_turn
                permits_are_counted
                a_lease_lapses_after_its_ttl
                a_lapsed_permit_comes_back
                names_do_not_collide
                renewal_extends
                renewal_tells_of_loss
                renewal_is_a_batch
                release_frees_the_name
                release_is_idempotent
                release_never_frees_a_successor
                downgrade_lets_readers_in
                downgrade_tells_of_loss
                inspect_shows_holder_and_waiters
                list_pages_by_prefix
                eviction_frees_the_name
                eviction_names_a_holder
                examination_changes_nothing
                tells_the_time
                records_refuse_a_stale_open
                records_refuse_a_collision
                records_refuse_a_token_of_another_lock
                records_keep_what_was_written
                records_refuse_an_unopened_write
                records_refuse_a_stale_write
                records_refuse_the_token_of_a_lease_that_ended
                records_have_a_limit
                records_can_be_removed
                records_refuse_a_stale_removal
                records_are_listed_by_prefix
            ]
            [
                a_killed_holder_is_out_at_once
                a_killed_waiter_is_out_at_once
                a_stopped_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused
                a_stopped_waiter_does_not_hold_up_the_line
                a_cut_off_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused
                an_expired_lease_is_lost_and_the_next_in_line_is_granted
                a_lease_removed_behind_its_back_is_lost
            ]
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __lists {
    ([$($contract:ident)*] [$($fault:ident)*]) => {
        /// The cases that are lines of the contract's documentation, by their names, in its order.
        pub const CONTRACT: &[(&str, Case)] =
            &[$((stringify!($contract), |harness| Box::pin($contract(harness)))),*];

        /// The cases that need a fault of the harness's making.
        pub const FAULTS: &[(&str, Case)] =
            &[$((stringify!($fault), |harness| Box::pin($fault(harness)))),*];
    };
}

__with_every_case! { __lists }
