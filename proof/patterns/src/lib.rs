//! The patterns of the hall, held to what their documentation says: cases that run against every backend.
//!
//! Each case is an async function of the module of its pattern, whose name begins with the pattern's. A backend names all of them
//! once, beside its conformance suite and by the same [`Harness`](ringfence_testkit::Harness):
//!
//! ```ignore
//! ringfence_patterns::patterns!(Some(Memory::new()));
//! ```
//!
//! Beside them, the patterns by which [processes](mod@faults) work that are stopped, killed or cut off:
//!
//! ```ignore
//! ringfence_patterns::faults!(RedisServer::start().await.map(Redis));
//! ```
//!
//! A holder that hangs past its lease is one whose hall does not renew ([`max_hold`](ringfence::LockRequest::max_hold)), so that
//! these cases need nothing that a backend's harness would have to bring.

pub mod faults;
pub mod idempotency;
pub mod leader;
pub mod lock_delay;
pub mod once;
pub mod optimistic;
pub mod partitions;
pub mod rate_limit;
mod stage;
pub mod waiting;

/// Expands to one `#[test]` for each case, named after it. The expression makes the harness, as for
/// [`conformance!`](ringfence_testkit::conformance).
#[macro_export]
macro_rules! patterns {
    ($harness:expr $(,)?) => {
        $crate::__tests! { ($harness)
            idempotency::idempotency_gives_a_duplicate_the_result
            idempotency::idempotency_does_concurrent_requests_once
            idempotency::idempotency_starts_again_after_a_failure
            idempotency::idempotency_refuses_the_result_of_one_that_hung
            idempotency::idempotency_keeps_the_result_that_was_stored_first
            idempotency::idempotency_of_one_that_is_cut_off_is_done_by_another
            idempotency::idempotency_removes_what_is_past_its_retention
            idempotency::idempotency_is_not_disturbed_by_who_removes_what_is_over
            leader::leader_is_one_and_the_next_has_a_later_term
            leader::leader_is_observed_in_order
            leader::leader_that_proclaimed_nothing_yet_is_not_taken_for_the_one_before
            leader::leader_of_one_process_follows_another_in_its_own_term
            leader::leader_that_gave_up_waiting_leaves_the_line
            leader::leader_that_hangs_past_its_term_proclaims_no_more
            leader::leader_that_is_evicted_learns_of_it
            leader::leader_that_is_cut_off_ends_its_term_before_the_next_begins
            lock_delay::lock_delay_keeps_others_out
            lock_delay::lock_delay_is_not_shortened_by_who_has_lost
            lock_delay::lock_delay_is_none_after_a_clean_release
            lock_delay::lock_delay_keeps_candidates_out
            once::once_is_run_by_one_of_many_at_the_same_instant
            once::once_runs_again_in_the_next_window
            once::once_a_failed_run_is_retried_only_where_that_is_asked_for
            once::once_a_run_that_lost_its_lease_ends_nothing
            once::once_a_run_that_is_cut_off_is_cancelled_in_time
            once::once_a_run_longer_than_its_window_is_alone
            once::once_a_wrong_clock_runs_no_window_twice
            optimistic::optimistic_writes_are_refused_who_read_before_the_last_one
            optimistic::optimistic_updates_lose_nothing
            optimistic::optimistic_writes_of_one_that_hung_are_refused
            optimistic::optimistic_writes_wait_for_whoever_holds_the_lock
            optimistic::optimistic_writes_of_one_that_is_cut_off_are_whole_or_not_at_all
            rate_limit::rate_limit_grants_a_permit_again_a_ttl_later
            rate_limit::rate_limit_counts_from_the_grant_beside_older_leases
            rate_limit::rate_limit_outlives_the_locks_of_those_who_took_their_permits
            rate_limit::rate_limit_holds_for_everybody_who_hammers_at_it
            rate_limit::rate_limit_lets_an_operator_give_a_permit_back
            partitions::partitions_are_dealt_to_all_and_move_to_a_newcomer_only
            partitions::partitions_are_finished_before_the_next_owner_has_them
            partitions::partitions_are_revoked_when_the_membership_is_lost
            partitions::partitions_are_taken_when_the_hand_over_is_over
            partitions::partitions_that_nobody_heard_of_go_without_a_word
            partitions::partitions_in_another_number_are_refused_while_anybody_takes_part
            partitions::partitions_of_one_that_is_cut_off_are_known_to_be_gone
            waiting::waiting_in_vain_names_the_holder
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __tests {
    (($harness:expr) $($pattern:ident::$case:ident)*) => {
        $(
            #[test]
            fn $case() {
                ::ringfence_testkit::run(stringify!($case), async { $harness }, |harness| {
                    ::std::boxed::Box::pin($crate::$pattern::$case(harness))
                });
            }
        )*
    };
}
