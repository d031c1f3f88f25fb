//! Which tests show a promise: what GUARANTEES.md says in its last column.

/// The ways to one Redis server.
const REDIS: &[&str] = &["redis", "redis+sentinel", "redis+unix", "rediss"];

/// The ways to an etcd cluster.
const ETCD: &[&str] = &["etcd", "etcds"];

/// A PostgreSQL server, with leases in rows.
const POSTGRES: &[&str] = &["postgres", "postgresql"];

/// The server's own locks instead of rows.
const ADVISORY: &[&str] = &["postgres:?recipe=advisory"];

/// Where a killed holder's lease is free at its TTL.
const AT_TTL: &[&str] = &[
    "etcd",
    "etcds",
    "memory",
    "postgres",
    "postgresql",
    "redis",
    "redis+cluster",
    "redis+sentinel",
    "redis+unix",
    "rediss",
    "redlock",
    "zookeeper",
];

/// Every backend.
const ALL: &[&str] = &[
    "etcd",
    "etcds",
    "memory",
    "local",
    "postgres",
    "postgresql",
    "redis",
    "redis+cluster",
    "redis+sentinel",
    "redis+unix",
    "rediss",
    "redlock",
    "zookeeper",
];

/// What a promise is about, of which schemes (or of which URLs that ask for others), and tests that would fail without it. A
/// promise may have several lines.
///
/// Of the conformance suite only those cases count that apply to the backend: `cargo xtask test` prints the others as *not
/// applicable*.
pub(crate) const EVIDENCE: &[(&str, &[&str], &[&str])] = &[
    ("Who can contend", ALL, &["busy_is_a_value", "names_do_not_collide"]),
    ("Who can contend", &["local"], &["kills_at_random_lose_nothing_and_stall_nobody"]),
    ("Fencing tokens", ALL, &["sequences_rise"]),
    (
        "Fencing tokens",
        &["redlock"],
        &[
            "numbers_rise_for_as_long_as_one_node_of_the_quorum_remembers",
            "a_number_that_somebody_else_may_have_is_not_granted",
            "a_clock_that_jumps_breaks_exclusion_and_no_stale_write_is_accepted",
            "tokens_of_five_nodes_rise_while_a_quorum_bears_what_is_forgotten",
        ],
    ),
    (
        "Order of waiters",
        ETCD,
        &[
            "first_come_first_served",
            "trying_does_not_overtake",
            "a_waiting_writer_is_not_starved",
            "readers_share_one_turn",
            "a_stopped_waiter_does_not_hold_up_the_line",
        ],
    ),
    (
        "Order of waiters",
        ETCD,
        &[
            "a_waiter_that_is_killed_is_out_of_the_line_after_seconds_and_not_after_its_ttl",
            "a_waiter_whose_key_is_written_by_hand_has_not_held",
        ],
    ),
    ("Permits", ALL, &["permits_are_counted", "a_lapsed_permit_comes_back"]),
    (
        "Wake-up",
        ETCD,
        &[
            "waits_for_release",
            "who_waits_is_told_of_its_turn_and_need_not_look",
            "a_release_is_news_for_the_next_in_line_and_not_for_all",
            "a_compaction_takes_no_turn_away",
        ],
    ),
    (
        "The records' fence",
        ETCD,
        &[
            "a_record_refuses_a_lease_that_ends_between_the_look_and_the_write",
            "a_record_that_is_opened_between_the_look_and_the_write_takes_no_older_token",
            "a_record_whose_mark_is_another_holders_of_the_same_number_is_a_collision",
        ],
    ),
    (
        "Fencing tokens",
        ETCD,
        &[
            "waiters_of_one_process_are_different_waiters_with_tokens_of_their_own",
            "a_leader_that_is_killed_is_followed_by_holders_waiters_and_newcomers",
            "without_a_majority_a_guard_is_lost_at_its_deadline_and_the_lock_is_free_soon_after_it_is_back",
        ],
    ),
    ("A killed holder", ETCD, &["a_lease_that_nobody_renews_lapses_beside_one_that_is_renewed"]),
    (
        "A paused holder",
        ETCD,
        &[
            "a_lease_lapses_after_its_ttl",
            "a_lease_counts_from_before_it_was_asked_for_and_is_none_when_that_is_too_long_ago",
            "renewal_tells_of_loss",
            "a_stopped_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused",
            "a_cut_off_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused",
        ],
    ),
    ("Order of waiters", &["redlock"], &["waiters_that_split_the_votes_all_get_their_turn"]),
    ("Wake-up", &["redlock"], &["waits_for_release"]),
    (
        "A paused holder",
        &["redlock"],
        &[
            "a_lease_lapses_after_its_ttl",
            "renewal_tells_of_loss",
            "a_stopped_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused",
            "a_cut_off_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused",
            "a_clock_that_jumps_breaks_exclusion_and_no_stale_write_is_accepted",
            "answers_that_are_read_after_the_ttl_are_no_grant",
            "a_process_that_is_stopped_over_its_grant_does_not_hold",
        ],
    ),
    (
        "Records",
        &["redlock"],
        &["a_record_lives_on_any_majority", "a_write_that_an_opening_did_not_see_never_comes_back"],
    ),
    (
        "Order of waiters",
        &["zookeeper"],
        &[
            "a_waiter_whose_node_is_written_by_somebody_else_has_not_held",
            "first_come_first_served",
            "trying_does_not_overtake",
            "a_waiting_writer_is_not_starved",
            "readers_share_one_turn",
            "a_stopped_waiter_does_not_hold_up_the_line",
        ],
    ),
    (
        "Wake-up",
        &["zookeeper"],
        &[
            "waits_for_release",
            "a_turn_comes_with_what_is_waited_for",
            "what_a_hand_over_reads_does_not_grow_with_the_line",
        ],
    ),
    (
        "The records' fence",
        &["zookeeper"],
        &[
            "a_record_takes_no_write_after_the_end_of_its_lease",
            "a_record_that_is_opened_takes_no_write_of_an_older_token",
            "a_record_takes_no_number_but_that_of_the_lease",
        ],
    ),
    (
        "Fencing tokens",
        &["zookeeper"],
        &[
            "a_container_that_vanishes_takes_no_order_of_tokens_with_it",
            "a_restarted_server_has_every_lease_and_place",
            "an_ensemble_loses_its_leader_and_nobody_loses_a_lease",
            "effects_are_in_order_when_the_leader_is_cut_off",
            "effects_are_in_order_when_no_server_reaches_another",
        ],
    ),
    (
        "A paused holder",
        &["zookeeper"],
        &[
            "a_lease_lapses_after_its_ttl",
            "renewal_tells_of_loss",
            "an_expired_lease_is_lost_and_the_next_in_line_is_granted",
            "while_nobody_answers_a_guard_is_lost_at_its_deadline_and_never_before",
            "without_a_quorum_guards_are_lost_and_afterwards_the_lock_is_free_again",
            "who_is_cut_off_with_the_leader_loses_in_time_and_the_fence_refuses_what_it_writes_afterwards",
            "a_wall_clock_that_is_stepped_ends_no_session_and_prolongs_none",
            "a_stopped_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused",
            "a_cut_off_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused",
        ],
    ),
    (
        "Order of waiters",
        POSTGRES,
        &[
            "first_come_first_served",
            "trying_does_not_overtake",
            "a_waiting_writer_is_not_starved",
            "readers_share_one_turn",
            "a_stopped_waiter_does_not_hold_up_the_line",
        ],
    ),
    (
        "Order of waiters",
        POSTGRES,
        &["waiters_that_are_killed_stopped_and_cut_off_cost_the_next_one_seconds"],
    ),
    (
        "Fencing tokens",
        POSTGRES,
        &[
            "leases_and_numbers_outlive_a_power_cut_whatever_the_default_is",
            "an_asynchronous_promotion_lets_two_hold_and_the_fence_tells_them_apart",
            "what_an_old_primary_still_grants_is_below_what_the_new_one_grants",
            "a_name_that_is_forgotten_keeps_its_numbers_rising",
            "a_clock_set_forward_ends_leases_and_the_fence_holds",
        ],
    ),
    (
        "Wake-up",
        POSTGRES,
        &["waits_for_release", "who_waits_is_told_of_its_turn_and_nobody_else_of_anything"],
    ),
    (
        "A paused holder",
        POSTGRES,
        &[
            "a_lease_lapses_after_its_ttl",
            "renewal_tells_of_loss",
            "a_stopped_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused",
            "a_cut_off_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused",
            "a_process_stopped_past_its_ttl_has_lost_and_is_refused",
            "a_clock_set_forward_ends_leases_and_the_fence_holds",
        ],
    ),
    ("A killed holder", POSTGRES, &["a_killed_holder_is_out_after_its_ttl"]),
    (
        "A killed holder",
        &["postgres:?reclaim=connection", "postgres:?recipe=advisory"],
        &["a_killed_holder_is_out_at_once", "a_killed_waiter_is_out_at_once"],
    ),
    (
        "Order of waiters",
        ADVISORY,
        &[
            "first_come_first_served",
            "trying_does_not_overtake",
            "a_stopped_waiter_does_not_hold_up_the_line",
            "a_session_that_shares_lets_nobody_past_a_writer_that_waits",
        ],
    ),
    ("Permits", ADVISORY, &["permits_are_counted"]),
    ("Fencing tokens", ADVISORY, &["tokens_rise_through_crashes_and_a_promotion"]),
    (
        "A paused holder",
        ADVISORY,
        &[
            "a_stopped_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused",
            "a_cut_off_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused",
            "the_server_itself_frees_the_lock_of_a_stopped_process_at_its_ttl",
        ],
    ),
    ("The records' fence", ADVISORY, &["records_refuse_a_stale_open", "records_refuse_a_stale_write"]),
    (
        "Fencing tokens",
        &["local"],
        &[
            "sequences_rise_through_every_reopening",
            "sequences_rise_through_every_way_to_go_away",
            "kills_at_random_lose_nothing_and_stall_nobody",
            "no_grant_has_a_number_that_is_not_durable",
            "an_end_that_was_lost_with_the_power_is_cut_off_and_sequences_go_on_above_it",
            "sequences_survive_power_cuts_without_a_record",
            "sequences_and_records_survive_power_cuts",
        ],
    ),
    (
        "Order of waiters",
        &["memory", "local"],
        &[
            "first_come_first_served",
            "trying_does_not_overtake",
            "a_waiting_writer_is_not_starved",
            "readers_share_one_turn",
            "a_line_is_first_come_first_served",
            "an_offer_that_nobody_claims_passes_to_the_next_after_its_window",
        ],
    ),
    (
        "Order of waiters",
        &["local"],
        &["a_stopped_waiter_does_not_hold_up_the_line", "a_stopped_waiter_costs_the_next_one_about_a_second"],
    ),
    ("Order of waiters", &["memory"], &["whoever_sleeps_through_its_turn_comes_last"]),
    (
        "Order of waiters",
        REDIS,
        &[
            "first_come_first_served",
            "trying_does_not_overtake",
            "a_waiting_writer_is_not_starved",
            "readers_share_one_turn",
            "a_stopped_waiter_does_not_hold_up_the_line",
            "waiters_that_are_killed_stopped_and_cut_off_cost_the_next_one_a_second_each",
            "a_waiter_without_a_connection_is_passed_over_and_stands_at_the_end_of_the_line",
        ],
    ),
    (
        "Wake-up",
        REDIS,
        &[
            "waits_for_release",
            "a_release_tells_the_next_one_in_line",
            "nothing_is_published_when_nobody_waits",
            "a_hand_over_costs_as_many_commands_whether_ten_wait_or_a_thousand",
        ],
    ),
    (
        "Fencing tokens",
        REDIS,
        &["sequences_rise_through_lost_memory", "sequences_rise_when_the_servers_clock_goes_back"],
    ),
    (
        "Fencing tokens",
        &["redis+sentinel"],
        &[
            "sequences_rise_through_a_failover_while_they_are_granted",
            "two_hold_while_a_primary_is_cut_off_and_records_there_and_elsewhere_refuse_every_stale_write",
        ],
    ),
    (
        "Order of waiters",
        &["redis+cluster"],
        &[
            "first_come_first_served",
            "trying_does_not_overtake",
            "a_waiting_writer_is_not_starved",
            "readers_share_one_turn",
            "a_stopped_waiter_does_not_hold_up_the_line",
            "a_waiter_that_nobody_hears_is_passed_over_at_once",
            "waiters_have_their_turns_when_their_slot_moves",
        ],
    ),
    (
        "Wake-up",
        &["redis+cluster"],
        &[
            "waits_for_release",
            "a_grant_costs_what_is_written_and_nothing_is_left_subscribed",
            "a_waiter_whose_subscription_is_cut_is_told_all_the_same",
        ],
    ),
    (
        "Fencing tokens",
        &["redis+cluster"],
        &["a_masters_loss_is_survived_by_holders_waiters_and_newcomers", "a_lock_moves_with_its_slot"],
    ),
    (
        "A paused holder",
        &["redis+cluster"],
        &[
            "a_lease_lapses_after_its_ttl",
            "renewal_tells_of_loss",
            "a_stopped_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused",
        ],
    ),
    ("Order of waiters", &["redis+sentinel"], &["a_failover_is_followed_by_holders_waiters_and_newcomers"]),
    (
        "The records' fence",
        &["redis+sentinel"],
        &["two_hold_while_a_primary_is_cut_off_and_records_there_and_elsewhere_refuse_every_stale_write"],
    ),
    (
        "A paused holder",
        REDIS,
        &[
            "a_lease_lapses_after_its_ttl",
            "renewal_tells_of_loss",
            "a_stopped_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused",
            "a_cut_off_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused",
            "a_clock_set_forward_breaks_exclusion_and_the_record_refuses_every_stale_write",
            "a_holder_that_slept_past_its_ttl_wakes_up_to_a_refusal_and_a_loss",
            "a_waiter_that_sleeps_through_its_turns_believes_none_of_them",
            "while_nobody_answers_a_guard_is_lost_at_its_deadline_and_never_before",
        ],
    ),
    (
        "Wake-up",
        &["memory", "local"],
        &["waits_for_release", "a_release_is_news_for_the_next_in_line_and_for_nobody_else"],
    ),
    ("A killed holder", AT_TTL, &["a_lease_lapses_after_its_ttl"]),
    (
        "A killed holder",
        &["local"],
        &[
            "a_killed_holder_is_out_at_once",
            "whoever_is_next_holds_within_a_second_of_a_kill",
            "what_a_dropped_client_held_is_free_at_once",
            "the_command_dies_with_the_program_and_the_lock_is_free_at_once",
            "a_grandchild_that_survives_keeps_the_lease_until_its_ttl_and_no_longer",
        ],
    ),
    (
        "A paused holder",
        &["memory", "local"],
        &["a_lease_lapses_after_its_ttl", "renewal_tells_of_loss", "records_refuse_a_stale_write"],
    ),
    (
        "A paused holder",
        &["local"],
        &[
            "a_stopped_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused",
            "a_stopped_holder_keeps_its_lease_until_its_ttl_and_is_refused_afterwards",
            "stops_at_random_stall_nobody_and_no_late_write_is_taken",
        ],
    ),
    ("Records", ALL, &["records_keep_what_was_written", "records_have_a_limit"]),
    ("Records", &["local"], &["sequences_and_records_survive_power_cuts"]),
    (
        "The records' fence",
        ALL,
        &[
            "records_refuse_a_stale_open",
            "records_refuse_a_stale_write",
            "records_refuse_an_unopened_write",
            "records_refuse_a_collision",
            "records_refuse_a_token_of_another_lock",
            "records_refuse_the_token_of_a_lease_that_ended",
        ],
    ),
    (
        "The records' fence",
        &["local:?fence=mark"],
        &[
            "a_record_here_refuses_who_held_a_lock_elsewhere_once_the_next_holder_has_opened_it",
            "a_record_for_a_lock_elsewhere_keeps_its_mark_and_its_guard",
            "a_record_for_a_lock_elsewhere_checks_its_mark_and_no_lease",
            "records_refuse_a_stale_open",
            "records_refuse_a_stale_write",
            "records_refuse_an_unopened_write",
            "records_refuse_a_collision",
        ],
    ),
    ("The records' fence", &["local"], &["stops_at_random_stall_nobody_and_no_late_write_is_taken"]),
    (
        "TTL",
        ALL,
        &[
            "a_ttl_is_in_its_range_or_an_error",
            "what_is_wrong_with_a_request_is_said_before_anything_is_sent",
        ],
    ),
];
