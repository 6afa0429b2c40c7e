"""What has been tried against protocols of this kind, what stops it here, which tests play it, and what is not stopped.

Rules:

1. One entry for each attack, numbered from 1 without gaps. A number is never given to another attack.
2. A test is `path::[Class::]function`, below `tests/`. It plays the hostile party on real messages and sees the typed
   error on the honest side, or, for a limit, shows how far the attack still gets.
3. `remains` says what is *not* stopped. It is empty only where nothing of the attack is left.

`test_catalogue.py` holds the entries against the tests, and the table of SECURITY.md against the entries.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One line of the table.

    Attributes:
        number: its number, for ever.
        attack: what the hostile party does.
        defence: what stops it.
        tests: the tests that play it.
        remains: what is not stopped.
    """

    number: int
    attack: str
    defence: str
    tests: tuple[str, ...]
    remains: str = ""


VIEWS = "adversary/test_views.py"
RING = "adversary/test_ring.py"
KEYS = "adversary/test_keys.py"
HYBRID = "adversary/test_hybrid.py"
SHARES = "adversary/test_shares.py"
REPLAY = "adversary/test_replay.py"
POLICY = "adversary/test_policy.py"
ISOLATION = "adversary/test_isolation.py"
STREAMS = "adversary/test_streams.py"
WEAK = "adversary/test_weak_sources.py"
LATE = "adversary/test_late_and_copied.py"
LIMITS = "adversary/test_limits.py"
FLOODING = "adversary/test_flooding.py"
BRANCHES = "adversary/test_branches.py"
ENCODINGS = "adversary/test_key_encodings.py"
OVERFLOW = "adversary/test_overflow.py"
REMOVABLE = "adversary/test_removable.py"
SESSIONS = "conformance/test_sessions.py"
OS_SERVER = "one_shot/test_hostile_server.py"
OS_PARTIES = "one_shot/test_hostile_parties.py"
OS_ARITHMETIC = "one_shot/test_bad_arithmetic.py"

CATALOGUE = (
    Attack(
        number=1,
        attack="The server names a client both alive and dead, to get both of its secrets",
        defence="There is one list, of survivors; the dead are the rest of the cohort, computed by the client. A name "
        "that occurs twice and a second list do not decode",
        tests=(
            f"{VIEWS}::TestSurvivorList::test_a_client_named_twice_or_out_of_order",
            f"{VIEWS}::TestSurvivorList::test_a_second_list_of_the_dead_does_not_decode",
            f"{OS_SERVER}::TestMembers::test_refuse_wrong_survivors",
        ),
    ),
    Attack(
        number=2,
        attack="The server asks again, after a pretended timeout or with other survivors",
        defence="A client answers once, and its secrets are erased before the answer leaves. After a crash its durable "
        "record forbids the round",
        tests=(
            f"{VIEWS}::TestAskedTwice::test_a_second_survivor_list_ends_the_round",
            f"{VIEWS}::TestAskedTwice::test_the_very_same_survivor_list_again_ends_the_round",
            f"{VIEWS}::TestAskedTwice::test_after_the_answer_nothing_is_answered",
            f"{OS_SERVER}::TestMembers::test_answer_once",
            "one_shot/test_crashes.py::test_the_round_is_not_joined_again",
            "one_shot/test_crashes.py::test_the_old_request_is_not_answered_in_another_round",
        ),
    ),
    Attack(
        number=3,
        attack="The server shows different cohorts or survivors to different clients",
        defence="Each client signs the view that it saw, and answers only with the signatures of t of its holders on "
        "the same view (one-shot: the view is in every member's answer)",
        tests=(
            f"{VIEWS}::TestForks::test_every_split_without_colluders",
            f"{VIEWS}::TestForks::test_every_split_with_colluders",
            f"{VIEWS}::TestForks::test_every_pair_of_survivor_sets",
            f"{VIEWS}::TestForks::test_signatures_on_the_other_view_do_not_count",
            f"{VIEWS}::TestSignatures::test_bad_evidence",
            f"{VIEWS}::TestCohort::test_two_cohorts_shown_to_two_groups",
            f"{OS_PARTIES}::TestServer::test_two_servers_cannot_both_finish",
            "one_shot/test_split_views.py::TestRealMessages::test_never_t_answers_for_both_views",
        ),
    ),
    Attack(
        number=4,
        attack="Two survivor sets each gather t shares, since the threshold is too low",
        defence="A configuration is refused unless 2t > holders + corrupt holders (one-shot: 3t > 2 members + corrupt "
        "ones). One less, and the attack works: the bounds are tight",
        tests=(
            "adversary/test_threshold.py::test_the_bound_is_tight",
            "adversary/test_threshold.py::test_the_required_threshold_is_the_first_that_holds",
            "protocols/test_session.py::TestRoundConfig::test_refused",
            f"{POLICY}::TestFloors::test_a_round_below_a_clients_own_floors_is_never_opened",
            "one_shot/test_config.py::TestOneShotConfig::test_refuses",
            "one_shot/test_split_views.py::TestAlgebra::test_the_bound_is_exact",
            "one_shot/test_split_views.py::TestRealMessages::test_one_less_gives_the_vector_away",
        ),
        remains="More colluders among one client's holders than the configuration tolerates",
    ),
    Attack(
        number=5,
        attack="In a sparse graph, a victim's neighbours or two runs of the ring are declared dead, to open the sum "
        "over fewer clients than the floor",
        defence="t of k + 1 holders must be alive and must have signed the same view, with t so high that neither a "
        "cut of the ring nor a split of the views leaves enough of them at its edge",
        tests=(
            f"{ISOLATION}::TestVictim::test_the_neighbours_are_dead_to_all_others",
            f"{ISOLATION}::TestVictim::test_any_part_of_the_others_is_told_so",
            f"{RING}::test_an_arc_cannot_be_unmasked_alone",
            f"{RING}::test_one_colluder_more_in_each_run_would_cut_the_ring",
            f"{VIEWS}::TestSurvivorList::test_fewer_holders_than_the_threshold",
            f"{VIEWS}::TestSignatures::test_strangers_on_a_ring_do_not_count",
        ),
        remains="On a ring, regions far apart may answer different views; no secret gets t shares of both kinds",
    ),
    Attack(
        number=6,
        attack="The server chooses the graph or committee, tries cohorts until it likes it, or fills the roster with "
        "inventions",
        defence="Clients compute the ring from a commitment to all signed key bundles. Only pinned identities count. "
        "Degrees leave 2^-40 after 2^40 tries. A one-shot client's own policy pins the committee",
        tests=(
            f"{ISOLATION}::TestGraph::test_a_graph_of_the_server_opens_nothing",
            f"{ISOLATION}::TestGraph::test_every_bundle_moves_the_ring",
            f"{ISOLATION}::TestGraph::test_nine_sybils_in_ten_leave_no_sparse_graph",
            f"{RING}::test_the_ring_follows_from_the_keys",
            f"{KEYS}::TestLists::test_a_client_outside_the_roster",
            f"{KEYS}::TestLists::test_strangers_on_a_ring_cannot_fill_up_a_cohort",
            "protocols/test_graph.py::TestChooseDegree::test_the_smallest_that_meets_all_conditions",
            "one_shot/test_committee.py::TestPin::test_another_committee_is_refused_before_anything_leaves",
        ),
        remains="Sybils on the pinned roster itself beyond `max_colluders`: that the roster is genuine is a condition",
    ),
    Attack(
        number=7,
        attack="Keys are swapped, for one client or all, by a man in the middle or with a colluder's signature",
        defence="An Ed25519 signature of the pinned identity covers both keys, roster and serial; the root of all "
        "bundles enters every later key and signature",
        tests=(
            f"{KEYS}::TestSubstitution::test_one_key_of_one_peer",
            f"{KEYS}::TestSubstitution::test_one_key_shown_to_one_client",
            f"{KEYS}::TestSubstitution::test_keys_of_all_peers",
            f"{KEYS}::TestSubstitution::test_signed_by_another_client",
            f"{HYBRID}::TestSuites::test_the_kem_part_of_a_key_cannot_be_swapped",
            f"{OS_SERVER}::TestClients::test_refuse_wrong_members",
        ),
    ),
    Attack(
        number=8,
        attack="Sealed shares are permuted, reflected to their sender, sent to somebody else, or those of an older "
        "round",
        defence="The sealing key is derived for one round, sender and receiver in this direction; the associated data "
        "covers the round and all parts of the message",
        tests=(
            f"{SHARES}::TestRelay::test_permuted",
            f"{SHARES}::TestRelay::test_reflected",
            f"{SHARES}::TestRelay::test_to_another_receiver",
            f"{HYBRID}::TestRelay::test_no_part_of_a_sealed_message_can_be_changed",
            f"{HYBRID}::TestRelay::test_a_half_of_another_pair_does_not_fit",
            f"{HYBRID}::TestRelay::test_shares_and_half_of_an_older_round_do_not_open",
            f"{REPLAY}::TestDownwards::test_with_the_context_of_this_round",
            f"{OS_SERVER}::TestCopies::test_shares_of_one_member_do_not_open_at_another",
            f"{OS_SERVER}::TestCopies::test_shares_of_an_older_round_do_not_open",
        ),
    ),
    Attack(
        number=9,
        attack="A client's own key comes back as a peer's, or one key serves twice",
        defence="All public keys of a round are different, part by part, and a client's own bundle must come back "
        "unchanged",
        tests=(
            f"{KEYS}::TestSubstitution::test_own_key_echoed_as_a_peers",
            f"{KEYS}::TestDuplicates::test_passed_on_by_a_hostile_server",
            f"{KEYS}::TestDuplicates::test_a_key_copied_from_another_client",
            f"{KEYS}::TestLists::test_own_keys_must_come_back_unchanged",
            f"{HYBRID}::TestSuites::test_no_part_of_a_key_serves_two_clients",
        ),
    ),
    Attack(
        number=10,
        attack="A client shares other secrets than it uses, or answers with wrong shares of others' secrets",
        defence="What is reconstructed must match the advertised public key, or the commitment to the self seed or the "
        "half. If not, the round ends in an error that names whose secret it was, and no sum is released. One-shot "
        "members who lie are located while there are spare answers",
        tests=(
            f"{SHARES}::TestLyingDealer::test_shares_of_another_self_seed",
            f"{SHARES}::TestLyingDealer::test_shares_of_another_mask_key",
            f"{SHARES}::TestLyingDealer::test_another_commitment",
            f"{SHARES}::TestLyingHolder::test_one_wrong_limb",
            f"{SHARES}::TestLyingHolder::test_one_wrong_limb_of_a_mask_key",
            f"{SHARES}::TestLyingHolder::test_all_limbs_wrong_on_a_ring",
            f"{HYBRID}::TestLiar::test_a_false_half_does_not_spoil_the_sum",
            f"{OS_PARTIES}::TestServer::test_lying_members_are_located_while_there_are_spare_answers",
            f"{OS_PARTIES}::TestServer::test_a_wrong_key_never_gives_a_sum",
        ),
        remains="One liar can void a round. The pairwise protocol corrects no errors, and cannot tell an owner's lie "
        "from a holder's",
    ),
    Attack(
        number=11,
        attack="Shares at x = 0 or twice at one x, field elements or digits out of range, too many or too few",
        defence="x is never sent: it is the holder's place. Lengths and elements are checked where bytes are read, "
        "digits where a secret is rebuilt",
        tests=(
            "protocols/test_shamir.py::TestDecode::test_exactly_field_elements_of_the_right_count",
            "protocols/test_shamir.py::TestReconstruct::test_only_digits_that_a_secret_has_are_accepted",
            "protocols/test_shamir.py::TestReconstruct::test_slots_out_of_range_are_refused",
            f"{SHARES}::TestLyingDealer::test_elements_outside_the_field_inside_a_good_seal",
            f"{SHARES}::TestLyingDealer::test_another_number_of_shares_is_a_rejected_message",
            f"{SHARES}::TestLyingHolder::test_shares_that_are_none_are_a_rejected_message",
            f"{OS_SERVER}::TestMembers::test_refuse_a_share_outside_the_field",
        ),
    ),
    Attack(
        number=12,
        attack="X25519 points of low order, which make a shared secret zero",
        defence="Refused by name before any private key meets them: at the server a rejected message, at a client a "
        "typed error",
        tests=(
            f"{KEYS}::TestSubstitution::test_unusable_keys_cost_their_sender_its_place",
            f"{KEYS}::TestSubstitution::test_unusable_keys_passed_on_by_a_hostile_server",
            "protocols/test_keys.py::TestAgreement::test_low_order_points_are_refused",
            f"{OS_SERVER}::TestMembers::test_refuse_a_client_key_that_nobody_should_use",
        ),
    ),
    Attack(
        number=13,
        attack="A second encoding of a key (u + p, or the top bit set): the same secret under another name, which "
        "passes a test for equal keys",
        defence="Only canonical encodings pass: u < 2^255 - 19, and reduced coefficients in ML-KEM keys",
        tests=(
            f"{ENCODINGS}::test_a_copied_key_in_another_encoding_costs_its_sender_its_place",
            f"{ENCODINGS}::test_passed_on_by_a_hostile_server_every_client_refuses",
            f"{KEYS}::TestSubstitution::test_unusable_keys_passed_on_by_a_hostile_server",
            "protocols/test_keys.py::TestAgreement::test_every_other_encoding_of_an_honest_key_is_refused",
            "protocols/test_keys.py::TestHybrid::test_encapsulation_keys_with_unreduced_coefficients_are_refused",
        ),
    ),
    Attack(
        number=14,
        attack="Masks are guessed: short or folded seeds, or generators made for simulations",
        defence="Seeds of 256 bits, all of which count; AES-256-CTR; keys from the operating system. No module of "
        "`protocols` can reach another generator or cipher",
        tests=(
            f"{WEAK}::TestCode::test_no_other_generator_is_in_reach",
            f"{WEAK}::TestCode::test_only_these_algorithms_are_used",
            f"{WEAK}::TestSeeds::test_every_seed_of_a_round_is_a_key_of_256_bits",
            f"{WEAK}::TestSeeds::test_every_bit_of_every_secret_counts",
            f"{WEAK}::TestSeeds::test_the_source_is_the_operating_system",
            "protocols/test_prg.py::TestApplyMasks::test_seeds_have_256_bits",
            "protocols/test_prg.py::TestApplyMasks::test_nist_sp_800_38a_f_5_5",
            "conformance/test_vectors.py::TestRounds::test_specification",
        ),
        remains="An operating system whose generator is broken",
    ),
    Attack(
        number=15,
        attack="A keystream or a nonce is used twice: for two tensors, pieces or rounds, or after a restart",
        defence="One seed gives one stream for one vector, from counter 0; a sealing key encrypts one message. Both "
        "are derived for one round and usage",
        tests=(
            f"{STREAMS}::TestMasks::test_no_client_uses_a_stream_twice",
            f"{STREAMS}::TestMasks::test_no_block_of_a_mask_occurs_twice",
            f"{STREAMS}::TestMasks::test_workers_take_disjoint_ranges_of_a_stream",
            f"{STREAMS}::TestSeals::test_no_key_seals_twice",
            f"{STREAMS}::TestOneShot::test_no_secret_stream_and_no_sealing_key_serves_twice",
        ),
    ),
    Attack(
        number=16,
        attack="Two masked uploads of one client in one round are subtracted, or a value that the server knows gives "
        "away the mask of another",
        defence="One flat vector for each client and round, whatever it is made of; a second request ends the session; "
        "every word has its own piece of keystream",
        tests=(
            f"{STREAMS}::TestOneUpload::test_a_second_request_for_a_vector_ends_the_round",
            f"{STREAMS}::TestOneUpload::test_a_second_vector_of_the_application_ends_the_round",
            f"{STREAMS}::TestOneUpload::test_known_values_give_away_nothing_else",
            f"{STREAMS}::TestMasks::test_no_block_of_a_mask_occurs_twice",
            f"{SESSIONS}::TestOrderOfCalls::test_calls_out_of_order_kill_the_session",
        ),
    ),
    Attack(
        number=17,
        attack="Masks of an earlier round come again: the round is replayed, keys serve twice, or stored state is "
        "restored twice",
        defence="The round is in every key, by its configuration and all fresh bundles. Serials are burned before use. "
        "There is no stored state: live sessions and keys refuse to be pickled or copied",
        tests=(
            f"{STREAMS}::TestRepeatedRandomness::test_another_round_has_other_masks_and_seals",
            f"{STREAMS}::TestRepeatedRandomness::test_live_sessions_cannot_be_kept",
            f"{POLICY}::TestFloors::test_a_round_id_is_joined_once",
            f"{POLICY}::TestFloors::test_also_if_it_broke_off_at_once",
            f"{REPLAY}::TestDownwards::test_old_bundles_of_peers_were_seen_before",
            "protocols/test_one_time_keys.py::test_keys_serve_one_round",
            "protocols/test_rules.py::TestKeys::test_another_round_has_other_keys",
            f"{OS_SERVER}::TestSeparation::test_two_rounds_have_no_mask_and_no_view_in_common",
            "one_shot/test_one_time_key.py::TestOnce::test_the_same_key_does_not_serve_two_rounds",
            "one_shot/test_one_time_key.py::TestOnce::test_clients_refuse_a_bundle_that_served_before",
        ),
        remains="A machine whose memory image is resumed twice, or whose random source repeats: other masks, but the "
        "same secret keys, which a later round may give to the server",
    ),
    Attack(
        number=18,
        attack="A vector arrives after its sender was declared dead and its mask key was given out",
        defence="A second mask, of the self seed: once a client is dead to its holders, no share of that leaves them, "
        "and the client itself gets no quorum",
        tests=(
            f"{LATE}::TestLateVector::test_the_late_client_is_brought_back_to_nobody",
            f"{LATE}::TestLateVector::test_the_late_client_itself_refuses",
            f"{VIEWS}::TestLateVector::test_a_vector_after_unmasking_stays_masked",
            f"{SESSIONS}::TestMasterProperty::test_a_late_masked_vector_changes_nothing",
            "one_shot/test_rounds.py::TestFaults::test_a_late_contribution_is_not_in_the_sum",
        ),
    ),
    Attack(
        number=19,
        attack="Each client gets its own model, so that the others' gradients vanish; or all get one that was planted "
        "to print its data into the update",
        defence="The model's digest is in every key: with different models nothing opens. Floors and noise bound what "
        "one model for all can show",
        tests=(
            f"{REPLAY}::TestDifferentConfigurations::test_one_client_is_told_another_round_than_the_rest",
            "secagg/test_client_server.py::TestBegin::test_another_model",
            f"{LIMITS}::TestPlantedModel::test_the_exact_sum_is_the_victims_update",
            f"{LIMITS}::TestPlantedModel::test_noise_covers_it",
        ),
        remains="**A planted model, the same for all.** Without noise the exact sum can be one client's update; only "
        "`ClientLevel` or record-level noise bounds it",
    ),
    Attack(
        number=20,
        attack="Few honest clients among many sybils: the server subtracts what its own clients sent",
        defence="A client's own floors, for survivors and for tolerated colluders; noise is calibrated to the "
        "survivors without the colluders, and refused if that leaves fewer than two. A one-shot floor counts corrupt "
        "members as contributors",
        tests=(
            "one_shot/test_corrupt_contributors.py::test_the_floor_leaves_two_honest_contributors",
            "one_shot/test_corrupt_contributors.py::"
            "test_members_that_contribute_read_a_client_that_is_left_alone_with_them",
            f"{LIMITS}::TestSybils::test_all_others_together_see_the_last_one",
            f"{LIMITS}::TestSybils::test_a_client_that_fears_them_refuses_the_round",
            f"{LIMITS}::TestSybils::test_noise_is_not_promised_beyond_the_colluders_it_was_made_for",
            "secagg/test_config.py::TestLegality::test_noise_needs_two_honest_survivors",
            "secagg/test_statement.py::TestWithoutPrivacy::test_colluders_who_are_all_the_others_see_the_last_one",
        ),
        remains="**More colluders than `max_colluders`.** Nobody can tell them from honest clients; without noise "
        "n - 1 of them see the last client's update",
    ),
    Attack(
        number=21,
        attack="The sums over two sets of clients on one model are subtracted",
        defence="A client signs a second set on a model only if it is equal or differs in `min_survivors` clients; "
        "the record is durable. With distributed noise each attempt is charged instead",
        tests=(
            f"{POLICY}::TestDifferencing::test_everybody_and_everybody_but_one",
            f"{POLICY}::TestDifferencing::test_an_aborted_round_counts",
            f"{POLICY}::TestDifferencing::test_only_the_memory_prevents_it",
            f"{OS_SERVER}::TestPolicy::test_differencing_two_rounds_on_one_model",
            "secagg/test_client_server.py::TestDifferencing::test_with_noise_each_attempt_is_charged_instead",
            f"{LIMITS}::TestDifferencing::test_three_sets_far_apart_isolate_a_client_all_the_same",
        ),
        remains="**Differences in more than one step, or over different models.** Three sets that are pairwise far "
        "apart can isolate a client; only noise bounds that",
    ),
    Attack(
        number=22,
        attack="The sum itself gives data away: a picture, a word, or a coordinate that only one client has",
        defence="Noise. What a client sends has one size and no visible support, whatever is in its update",
        tests=(
            f"{LIMITS}::TestSum::test_a_coordinate_that_one_client_has_is_in_the_sum",
            f"{LIMITS}::TestSum::test_an_upload_does_not_show_where_an_update_is_zero",
            "secagg/test_inversion.py::test_an_exact_sum_of_eight_gradients_still_shows_digits",
            "secagg/test_inversion.py::test_noise_at_the_size_of_the_clip_beats_the_attack_and_little_noise_does_not",
        ),
        remains="**The exact sum.** Masking hides who sent what, not what the sum says",
    ),
    Attack(
        number=23,
        attack="Parameters are lowered: threshold, floor, degree, ring, clip, budget, model, roster, suite",
        defence="Each client has the whole configuration and its own floors. The digest of every field is in every "
        "key and signature; suites are not negotiated",
        tests=(
            f"{REPLAY}::TestDifferentConfigurations::test_clients_send_no_more_than_public_keys",
            f"{REPLAY}::TestDifferentConfigurations::test_even_if_the_network_translates_what_is_not_signed",
            f"{POLICY}::TestFloors::test_a_round_below_a_clients_own_floors_is_never_opened",
            f"{POLICY}::TestFloors::test_the_classical_suite_is_for_those_who_allow_it",
            f"{HYBRID}::TestSuites::test_no_negotiation",
            "protocols/test_session.py::TestRoundConfig::test_refused",
            "protocols/test_session.py::TestRoundConfig::test_every_field_is_in_the_digest",
            "secagg/test_config.py::TestDigest::test_changes_with_every_field",
            "secagg/test_client_server.py::TestBegin::test_another_configuration",
            "one_shot/test_config.py::TestOneShotConfig::test_every_field_is_in_the_digest",
        ),
        remains="A weak configuration that the client itself was given by who runs it",
    ),
    Attack(
        number=24,
        attack="Entries so large that a sum wraps or a lane runs over into the next",
        defence="A configuration whose largest sum does not fit is refused; a session refuses entries above its "
        "share of a lane",
        tests=(
            f"{SESSIONS}::TestMasterProperty::test_the_largest_entries_of_everybody",
            f"{SESSIONS}::TestOrderOfCalls::test_an_entry_too_large_changes_nothing",
            "protocols/test_packing.py::test_one_more_would_carry_into_the_next_lane",
            "protocols/test_session.py::TestRoundConfig::test_packed_lanes_hold_at_least_a_sum_of_ones",
            "secagg/test_config.py::TestRing::test_needed_bits_hold_the_largest_sum_and_one_less_does_not",
            "secagg/test_pipeline.py::TestNoPrivacy::test_largest_sums_do_not_wrap",
            "one_shot/test_rounds.py::TestSessions::test_a_bad_vector_changes_nothing",
            f"{OVERFLOW}::test_a_client_that_overflows_its_lane_spoils_the_sum_and_learns_nothing",
        ),
        remains="A malicious client can send any word: it can bias or void the sum, not read it",
    ),
    Attack(
        number=25,
        attack="A contribution is counted twice or under another name, to double one client's weight in the sum",
        defence="Messages are signed by their sender, who is in them; shares are sealed for one sender, and copies of "
        "key or vector are refused (one-shot). A copied pairwise vector keeps masks that nobody removes",
        tests=(
            f"{LATE}::TestCopiedVector::test_a_copy_in_a_colluders_name_does_not_double_the_victim",
            f"{REPLAY}::TestUpwards::test_another_clients_message_is_a_rejected_message",
            f"{OS_SERVER}::TestCopies::test_the_server_rejects_a_copy",
            f"{OS_SERVER}::TestCopies::test_members_refuse_a_copy",
        ),
        remains="The copy voids the sum: it is noise to everybody",
    ),
    Attack(
        number=26,
        attack="A one-shot contributor breaks the arithmetic: huge errors or keys, another scale, shares on no "
        "polynomial, values behind its vector",
        defence="A contribution proves that its shares are on a polynomial; a member complains about shares that do "
        "not open or are off it, and sender and receiver are named. The server checks key sum, errors and canaries "
        "before it releases anything. Members have spoken once, for one set, whatever the contribution was",
        tests=(
            f"{OS_ARITHMETIC}::test_a_key_that_is_too_large_voids_the_round",
            f"{OS_ARITHMETIC}::test_another_scale_is_another_vector_or_no_sum",
            f"{OS_PARTIES}::TestServer::test_errors_that_are_too_large_void_the_round",
            f"{OS_PARTIES}::TestServer::test_canaries_see_a_client_that_writes_behind_its_vector",
            "one_shot/test_blame.py::TestNamed::test_a_share_off_the_polynomial_is_noticed",
            "one_shot/test_blame.py::TestNamed::test_more_than_are_spare_end_the_round_and_name_every_pair",
            "one_shot/test_blame.py::TestEvidence::test_the_server_cannot_make_a_member_accuse_an_honest_client",
            "one_shot/test_blame.py::TestEvidence::test_a_false_complaint_costs_its_member_s_answer_and_opens_nothing",
            "one_shot/test_split_views.py::TestProofs::test_dealers_proofs_add_nothing",
            "protocols/test_share_proof.py::test_one_element_off_is_noticed_by_somebody",
        ),
        remains="One liar can void a round. It is not named if its shares are good, but of another key than its mask "
        "has. A lie that fits the arithmetic is another input",
    ),
    Attack(
        number=27,
        attack="Secrets are read from how long a step takes, or from which code it runs",
        defence="Rounds with different keys, seeds and vectors run the same Python instructions: no branch or loop "
        "depends on a secret. Rejection sampling is the exception, and shows only draws that are thrown away",
        tests=(
            f"{BRANCHES}::test_a_pairwise_round_runs_the_same_instructions_whatever_its_secrets",
            f"{BRANCHES}::test_a_one_shot_round_runs_the_same_instructions_whatever_its_secrets",
            f"{BRANCHES}::test_the_comparison_sees_a_branch_on_a_secret",
            "protocols/test_shamir.py::TestShare::test_coefficients_outside_the_field_are_drawn_again",
        ),
        remains="**Reviewed, not tested:** time itself, caches, and the code below: ciphers, curves and KEM of "
        "`cryptography`, numpy, Python's integers. The noise sampler's table look-ups do depend on the noise",
    ),
    Attack(
        number=28,
        attack="Messages that announce huge or deeply nested contents, or are simply long",
        defence="The length of every message is known before it is decoded; a longer one is not read. What it "
        "announces allocates nothing",
        tests=(
            f"{FLOODING}::TestClient::test_refuses_at_once_and_allocates_nothing",
            f"{FLOODING}::TestServer::test_rejects_at_once_and_goes_on",
            "protocols/test_wire.py::TestRefusals::test_announced_lengths_allocate_nothing",
            "protocols/test_wire.py::TestRefusals::test_deep_nesting",
            "protocols/test_wire.py::TestLimits::test_sizes_are_checked_before_anything_is_read",
            "one_shot/test_config.py::TestWire::test_requests_keep_their_limit",
            "one_shot/test_committee.py::TestLimits::test_each_kind_has_its_own",
            f"{OS_SERVER}::TestMembers::test_refuse_more_clients_than_the_round_has",
        ),
        remains="What the transport takes in before a session sees it",
    ),
    Attack(
        number=29,
        attack="A client's memory is deleted, damaged or replaced by an older copy, so that it repeats what it may do "
        "once",
        defence="A history is created by enrolment alone. Enrolled but missing, or damaged: the client refuses to "
        "start. Peers refuse a serial that they have seen",
        tests=(
            "secagg/test_lost_history.py::test_a_deleted_history_stops_the_client",
            "secagg/test_lost_history.py::test_enrolling_again_does_not_bring_a_client_back",
            "secagg/test_lost_history.py::test_an_older_copy_is_noticed_by_peers",
            "secagg/test_history.py::TestRefusals::test_missing",
            "secagg/test_history.py::TestRefusals::test_truncated_anywhere",
            "secagg/test_client_server.py::TestClientLedger::test_damaged_memory_stops_the_client",
            f"{POLICY}::TestDifferencing::test_only_the_memory_prevents_it",
        ),
        remains="An owner who restores an older copy is noticed by peers who remember, not by its own client",
    ),
    Attack(
        number=30,
        attack="The server asks for more of the removable noise than the dropouts permit: another number of survivors, "
        "two of them, or again",
        defence="No message names what is to be given up. Each client computes it from the survivors on whom it "
        "verified t signatures, and says its shares of that one link of each survivor's chain, once",
        tests=(
            f"{REMOVABLE}::TestTwoIndexes::test_no_two_links_of_one_client_are_ever_answered_often_enough",
            f"{REMOVABLE}::TestTwoIndexes::test_one_client_is_told_of_more_survivors",
            f"{REMOVABLE}::TestTwoIndexes::test_everybody_is_told_of_a_survivor_that_there_is_not",
            f"{REMOVABLE}::TestTwoIndexes::test_a_second_request_gets_nothing",
            f"{REMOVABLE}::TestTwoIndexes::test_nothing_of_a_dropouts_chain_is_ever_said",
            f"{REMOVABLE}::TestLies::test_shares_of_another_chain",
            f"{REMOVABLE}::TestLies::test_a_wrong_share_of_a_link_voids_the_round",
            "protocols/test_removable.py::test_the_server_gets_the_seeds_that_the_survivors_call_for",
            "dp/test_removable_noise.py::test_one_component_too_many_is_visible_in_the_variance",
        ),
        remains="t colluding holders have all links of a client, as they have its other secrets. The statement's last "
        "rung counts with that",
    ),
)


def table() -> str:
    """The catalogue for people, as a Markdown table."""
    rows = ["", "| # | attack | defence | not stopped | tests |", "|---|---|---|---|---|"]
    for entry in CATALOGUE:
        files = dict.fromkeys(test.partition("::")[0] for test in entry.tests)
        where = ", ".join(f"`tests/{file}`" for file in files)
        rows.append(f"| {entry.number} | {entry.attack} | {entry.defence} | {entry.remains or '—'} | {where} |")
    return "\n".join([*rows, ""])
