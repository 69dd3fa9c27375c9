"""Every threat, and the tests that hold it off: {letter: [(the threat, tests)]}; a test is "module::function".

Those of this directory are written without it. A test that takes the fixture
way is made in every way of hostile/ways.py; one that takes who, as root and as
an ordinary user.
"""

THREATS = {
    "A": [
        (
            "descriptors of the caller, or of the tool, reach PROG, directories among them",
            ["a_descriptors::test_they_reach_nothing", "test_run_identity::test_only_the_descriptors_that_are_kept"],
        ),
        (
            "descriptors of the tool are in a process that those inside can read",
            ["a_descriptors::test_they_reach_nothing", "test_run_life::test_the_init_holds_nothing_of_the_host"],
        ),
        (
            "a descriptor is closed by exec alone",
            [
                "a_descriptors::test_prog_is_not_what_somebody_had_open",
                "test_run_identity::test_only_the_descriptors_that_are_kept",
            ],
        ),
        (
            "the current directory is outside",
            ["a_descriptors::test_they_reach_nothing", "test_run_life::test_a_pid_file_appears_only_when_prog_runs"],
        ),
        ("the caller's directory was deleted", ["a_descriptors::test_a_caller_whose_directory_was_deleted"]),
        (
            "PROG reaches or forges what is written down of it",
            [
                "a_descriptors::test_what_is_written_down_is_not_written_elsewhere",
                "a_descriptors::test_what_is_written_down_goes_through_no_link",
                "test_limit::test_prog_has_no_descriptor_of_ours",
                "test_policy_changes::test_nothing_of_it_is_left_with_prog",
            ],
        ),
        (
            "/proc tells of the host, the init's links and memory first",
            ["a_descriptors::test_they_reach_nothing", "test_run_proc_dev::test_the_init_gives_nothing_away"],
        ),
        (
            "the kernel is tuned or read through /proc, behind the covers too, or in a second one",
            [
                "a_descriptors::test_they_reach_nothing",
                "test_run_proc_dev::test_what_tells_of_the_host_is_covered",
                "test_run_proc_dev::test_the_covers_cannot_be_taken_away",
            ],
        ),
        (
            "a mount of the old root is left",
            [
                "b_mounts::test_they_reach_nothing",
                "test_run_mounts::test_the_old_root_is_gone",
                "test_hako_policy::test_no_path_of_the_host_shows_the_root",
                "a_descriptors::test_nothing_shows_in_the_place_of_the_old_root",
            ],
        ),
    ],
    "B": [
        (
            "a mount point leads out of the new root",
            [
                "test_run_mounts::test_a_mount_point_is_found_inside_the_root",
                "test_run_mounts::test_a_component_swapped_meanwhile",
                "test_hako_policy::test_links_in_binds_lead_nowhere_else",
                "test_hako_policy::test_a_mount_point_swapped_meanwhile",
            ],
        ),
        (
            "names of odd bytes",
            ["test_run_mounts::test_names_of_any_kind", "test_hako_policy::test_names_of_any_kind"],
        ),
        (
            "read-only is not read-only, below, later, or for uid 0 in a namespace of its own",
            [
                "b_mounts::test_they_reach_nothing",
                "test_run_mounts::test_read_only_holds_below",
                "test_run_mounts::test_read_only_cannot_be_undone_from_inside",
                "test_hako_policy::test_read_only_cannot_be_undone_from_inside",
            ],
        ),
        (
            "a device or a setuid file in a mount is one",
            ["b_mounts::test_they_reach_nothing", "test_run_mounts::test_devices_and_setuid_files_are_inert"],
        ),
        (
            "mounts propagate, out or in",
            ["b_mounts::test_nothing_propagates_whatever_the_host_has", "test_run_mounts::test_nothing_propagates"],
        ),
        (
            "setting up changes what is there",
            [
                "b_mounts::test_setting_up_changes_nothing",
                "test_run_mounts::test_nothing_is_changed_in_target_and_source",
                "test_run_overlay::test_target_is_not_written",
            ],
        ),
        (
            "TARGET is none",
            [
                "test_run_mounts::test_a_target_that_is_none",
                "test_run_mounts::test_targets_made_to_confuse",
                "test_run_overlay::test_what_cannot_be_a_layer",
            ],
        ),
        (
            "tricks with chroot, descriptors, handles",
            ["b_mounts::test_they_reach_nothing", "test_run_mounts::test_chroot_tricks_stay_inside"],
        ),
    ],
    "C": [
        (
            "the pid file is something else",
            [
                "test_run_life::test_a_pid_file_replaces_nothing_else",
                "test_run_life::test_an_old_pid_file_is_replaced_and_a_hard_link_to_it_is_not_written",
                "c_pid_file::test_what_is_there_stays",
                "c_pid_file::test_prog_cannot_have_another_file_removed",
            ],
        ),
        (
            "it appears too early",
            [
                "test_run_life::test_a_pid_file_appears_only_when_prog_runs",
                "test_run_life::test_no_pid_file_appears_where_the_init_fails",
            ],
        ),
        (
            "it cannot be written, or only half, and the sandbox runs",
            [
                "test_run_life::test_a_pid_file_that_cannot_be",
                "test_run_life::test_a_pid_file_on_a_full_disk",
                "test_run_life::test_a_pid_file_past_the_limit_of_file_size",
                "test_run_life::test_no_pid_file_is_left_half_written",
            ],
        ),
        ("it stays", ["test_run_life::test_pid_file"]),
    ],
    "D": [
        (
            "PROG types on, changes or takes the caller's terminal",
            [
                "d_terminal::test_they_reach_nothing",
                "d_terminal::test_the_filter_knows_every_way_to_call_ioctl",
                "g_enter::test_the_terminal_that_no_descriptor_leads_to",
                "test_terminal::test_nothing_is_injected",
                "test_terminal::test_a_terminal_at_a_kept_descriptor_counts",
                "test_terminal::test_what_enters_has_no_hold_of_it_either",
                "test_hako_policy::test_nothing_is_injected_into_the_terminal",
            ],
        ),
        (
            "ptys of the host are opened",
            [
                "d_terminal::test_they_reach_nothing",
                "test_tty::test_no_terminal_of_the_host_is_inside",
                "test_tty::test_what_is_injected_stays_inside",
            ],
        ),
        (
            "the terminal stays as PROG left it",
            [
                "d_terminal::test_the_modes_are_put_back",
                "d_terminal::test_the_modes_are_put_back_behind_what_enters",
                "d_terminal::test_the_modes_may_be_those_of_another_in_the_pipeline",
                "test_tty::test_nothing_is_left",
                "test_tty::test_stop_and_go_on",
            ],
        ),
        (
            "a shell has no job control, no ^C, no window size",
            ["test_tty::test_job_control", "test_tty::test_a_window_that_changes_its_size"],
        ),
    ],
    "E": [
        (
            "another architecture, or x32, goes round the filter",
            [
                "e_seccomp::test_ways_round_a_profile",
                "e_seccomp::test_x32_is_refused_and_not_only_missing",
                "test_kafel::test_other_architectures_and_x32_are_refused",
                "test_oci::test_architectures",
            ],
        ),
        (
            "an argument is compared in part",
            [
                "e_seccomp::test_arguments_are_compared_in_full",
                "test_kafel::test_conditions",
                "test_oci::test_comparisons_are_of_64_bits",
            ],
        ),
        (
            "rules that are wrong, large, or no file",
            [
                "test_seccomp_exec::test_bad_rules",
                "test_seccomp_exec::test_the_largest_rules_cost_little",
                "test_seccomp_exec::test_rules_that_are_no_file",
                "test_oci::test_a_profile_that_is_wrong",
                "test_kafel::test_mistakes_are_told_with_their_place",
            ],
        ),
        (
            "no_new_privs is missing, a filter does not stack or is loaded too early",
            [
                "e_seccomp::test_no_new_privs_is_set_by_the_tool",
                "test_seccomp_exec::test_filters_stack",
                "test_seccomp_exec::test_prog_starts_under_rules_without_execve_and_starts_nothing_else",
            ],
        ),
        (
            "the known ways round a profile",
            [
                "e_seccomp::test_ways_round_a_profile",
                "test_seccomp_exec::test_what_the_profiles_refuse",
                "test_seccomp_exec::test_the_pass_is_for_one_exec",
                "test_seccomp_exec::test_prog_cannot_get_at_the_supervisor",
            ],
        ),
    ],
    "F": [
        (
            "an id that is half a number becomes root",
            [
                "test_run_identity::test_an_id_is_parsed_whole",
                "f_identity::test_an_id_is_parsed_whole_by_hako_policy",
                "f_identity::test_an_id_is_parsed_whole_by_hako_enter",
            ],
        ),
        (
            "an id, or a group, is kept",
            [
                "f_identity::test_they_reach_nothing",
                "f_identity::test_the_groups_of_root_are_gone",
                "test_run_identity::test_every_id_is_changed",
                "test_run_identity::test_supplementary_groups_are_cleared",
                "test_run_identity::test_groups_that_cannot_be_cleared_are_an_error",
                "test_hako_policy::test_no_group_of_root_is_kept_by_accident",
                "test_run_ids::test_supplementary_groups_are_cleared",
            ],
        ),
        (
            "a capability is kept or gained, by a file, by securebits, by the caller's ambient ones",
            [
                "f_identity::test_they_reach_nothing",
                "test_run_identity::test_nothing_is_kept",
                "test_run_identity::test_capabilities_that_are_asked_for",
                "test_run_identity::test_what_the_caller_had_is_gone",
                "test_hako_policy::test_capabilities_that_are_kept",
            ],
        ),
        (
            "the caller's session keyring is PROG's",
            ["f_identity::test_they_reach_nothing", "test_run_identity::test_the_session_keyring_is_new"],
        ),
    ],
    "G": [
        (
            "a number that is nobody's, somebody else's, or no process of a sandbox",
            [
                "g_enter::test_a_sandbox_that_has_just_died",
                "g_enter::test_a_number_that_became_somebody_elses",
                "test_enter::test_a_pid_that_is_none",
                "test_enter::test_a_process_of_the_host_is_refused",
                "test_enter::test_half_a_sandbox_is_refused",
                "test_enter::test_a_sandbox_that_is_still_being_made_is_refused",
                "test_enter::test_a_thread_is_refused",
                "test_enter::test_a_zombie_is_refused",
                "test_enter::test_a_kernel_thread_is_refused",
            ],
        ),
        (
            "some of the namespaces are joined, others not",
            [
                "test_enter::test_every_namespace_is_joined",
                "test_enter::test_all_namespaces_or_none",
                "g_enter::test_a_user_namespace_that_prog_has_made",
            ],
        ),
        (
            "those inside look into who enters, or overwrite the interpreter",
            [
                "a_descriptors::test_they_reach_nothing",
                "g_enter::test_nothing_of_the_host_comes_along",
                "test_enter::test_those_inside_see_nothing_of_who_enters",
                "test_enter::test_the_interpreter_is_out_of_reach",
                "test_run_identity::test_the_interpreter_is_out_of_reach",
                "test_run_ids::test_the_interpreter_is_out_of_reach_with_capabilities",
            ],
        ),
        (
            "what enters is under no limit, or outlives its supervisor",
            [
                "test_limit::test_the_limits_are_those_of_whoever_enters",
                "test_enter::test_resource_limits_of_the_sandbox_hold",
                "test_enter::test_prog_dies_with_the_supervisor",
            ],
        ),
    ],
    "H": [
        (
            "sandboxes in sandboxes",
            [
                "h_namespaces::test_three_deep_they_die_together",
                "hosts::test_hako_in_hako_in_hako",
                "test_run_identity::test_nested_three_deep",
            ],
        ),
        (
            "sockets, IPC, host name, processes of the host are reached",
            ["h_namespaces::test_they_reach_nothing", "test_run_identity::test_out_of_reach"],
        ),
        (
            "a file that is no network namespace",
            [
                "test_run_mounts::test_a_bad_value_is_one_line_and_nothing_runs",
                "test_hako_policy::test_bad_input_is_one_line_and_nothing_runs",
            ],
        ),
        ("a clock is set", ["h_namespaces::test_they_reach_nothing"]),
    ],
    "I": [
        (
            "something survives the supervisor",
            [
                "i_life::test_the_end_of_the_supervisor_is_the_end_of_all",
                "i_life::test_at_any_moment",
                "i_life::test_a_supervisor_that_dies_before_there_is_a_death_signal",
                "test_run_life::test_nothing_survives_the_supervisor",
                "test_run_life::test_prog_cannot_survive_by_clearing_its_death_signal",
                "test_limit::test_sigkill_of_the_supervisor_leaves_nothing",
                "test_limit::test_sigkill_of_both_leaves_what_the_next_run_removes",
            ],
        ),
        (
            "signals are lost, or PROG begins with the caller's dispositions",
            [
                "i_life::test_a_signal_of_prog_is_told",
                "test_run_life::test_a_signal_ends_it_all",
                "test_run_life::test_a_signal_reaches_prog",
                "test_run_life::test_prog_has_default_signals_whatever_the_caller_had",
                "test_run_life::test_signals_that_libc_hides_have_default_actions_too",
            ],
        ),
        (
            "zombies, the caller's own children, SIGCHLD ignored, many at once",
            [
                "test_run_life::test_orphans_are_reaped",
                "test_run_life::test_other_children_of_the_caller_are_not_mistaken",
                "test_run_life::test_sigchld_ignored_by_the_caller",
                "test_run_life::test_three_hundred_at_once",
                "test_limit::test_children_that_the_caller_had_are_left_alone",
            ],
        ),
        (
            "what PROG leaves behind lives on, or holds up a reader",
            [
                "i_life::test_what_prog_leaves_behind_goes_with_it",
                "i_life::test_an_init_that_is_starved_does_what_it_has_to",
                "i_life::test_who_has_itself_traced_is_not_taken_for_ended",
                "test_run_life::test_the_sandbox_ends_with_prog",
                "test_run_life::test_nobody_but_prog_holds_its_output",
            ],
        ),
        (
            "a call of the set-up fails, and PROG runs all the same",
            [
                "hosts::test_every_way_where_calls_are_missing",
                "test_faults::test_a_fault_leaves_nothing_half_done",
                "test_enter::test_all_namespaces_or_none",
            ],
        ),
    ],
    "J": [
        (
            "too much memory, of every kind",
            [
                "test_limit::test_memory",
                "test_limit::test_memory_of_a_tmpfs_in_a_sandbox",
                "test_limit::test_page_cache_is_given_back",
            ],
        ),
        ("too many processes", ["test_limit::test_pids"]),
        (
            "a limit is raised from inside",
            [
                "j_exhaustion::test_no_limit_can_be_raised",
                "j_exhaustion::test_nor_one_of_a_task",
                "test_limit::test_prog_cannot_raise_its_limit",
            ],
        ),
        (
            "a file system runs full, of bytes or of files",
            [
                "j_exhaustion::test_disk_and_inodes_of_a_tmpfs_are_bounded",
                "test_limit::test_disk",
                "test_limit::test_disk_full_of_inodes",
            ],
        ),
        (
            "a flood of output, read slowly or not at all",
            [
                "j_exhaustion::test_a_flood_into_a_closed_reader_ends",
                "test_limit::test_output",
                "test_limit::test_a_reader_that_does_not_read_stops_no_clock",
                "test_limit::test_a_full_disk_behind_the_output",
            ],
        ),
        (
            "the tool is short of descriptors, memory, processes, namespaces, disk",
            [
                "j_exhaustion::test_few_descriptors",
                "j_exhaustion::test_few_descriptors_leave_no_cgroup",
                "j_exhaustion::test_little_memory",
                "j_exhaustion::test_few_processes",
                "j_exhaustion::test_few_namespaces",
                "test_limit::test_usage_on_a_full_disk_ends_nothing",
            ],
        ),
    ],
    "K": [
        (
            "long, many, empty, odd or no arguments and variables",
            [
                "k_input::test_arguments_arrive_whole",
                "k_input::test_no_argv_at_all",
                "k_input::test_two_thousand_variables",
                "test_chain::test_long_arguments",
                "test_chain::test_many_arguments_and_variables",
                "test_chain::test_every_byte_passes",
            ],
        ),
        (
            "what is printed or written as JSON is not valid",
            [
                "test_run_overlay::test_names_that_are_not_utf_8_are_escaped",
                "test_policy_changes::test_names_of_any_kind",
                "test_request::test_text_that_was_no_utf_8_is_written_all_the_same",
            ],
        ),
        (
            "0, 1 or 2 are closed",
            ["k_input::test_closed_descriptors", "test_chain::test_closed_standard_descriptors_and_a_sandbox"],
        ),
        (
            "an option is guessed, a value half parsed",
            [
                "test_chain::test_a_wrong_option_is_one_line",
                "test_rlimit_exec::test_a_value_that_is_not_a_whole_number_limits_nothing_and_runs_nothing",
                "test_limit::test_bad_values",
            ],
        ),
    ],
    "L": [
        (
            "many at once, on one TARGET and on many; many in a row",
            [
                "l_many::test_each_way_many_times",
                "l_many::test_each_way_many_at_once",
                "l_many::test_three_hundred_targets_at_once",
                "test_run_life::test_three_hundred_at_once",
                "test_run_life::test_a_hundred_in_a_row_leave_nothing",
            ],
        ),
        (
            "the numbers of processes begin again; the clock on the wall is set",
            [
                "vm/test_pid_wrap::test_no_sandbox_takes_another_s_pid_for_its_own",
                "vm/test_clock::test_a_clock_that_is_set_ends_nothing",
            ],
        ),
        (
            "an old or restricted host",
            [
                "hosts::test_every_way_where_calls_are_missing",
                "hosts::test_where_calls_are_missing",
                "hosts::test_hako_in_bwrap",
                "hosts::test_bwrap_in_hako",
                "vm/test_without_user_namespaces::test_an_ordinary_user_is_refused",
                "vm/test_without_landlock::test_who_could_overwrite_the_interpreter_is_refused",
            ],
        ),
    ],
}
