"""Rules of learners and of what is kept for them, their tests and their switches."""

from __future__ import annotations

from tests.rules.rule import Rule

_U = "tests/unit/streams/"
_I = "tests/integration/"
_MERGE = f"{_U}test_merge.py::"
_LOOKAHEAD = f"{_U}test_lookahead.py::"
_HISTORIES = f"{_U}test_histories.py::"
_COURSE = f"{_U}test_course.py::"
_TRAIN = f"{_I}test_train.py::"
_SNAPSHOTS = f"{_I}test_snapshots.py::"
_REPLAYED = f"{_I}test_train_replayed.py::"
_FORGOTTEN = f"{_I}test_train_erasure.py::"
_SILENCES = f"{_U}test_silences.py::"
_CLOCKS = f"{_U}test_task_clocks.py::"
_OUTCOMES = f"{_I}test_train_outcomes.py::"

LEARNING_RULES: tuple[Rule, ...] = (
    Rule(
        number=13,
        says="of the heads the one with the smallest effective time is taken, ties by topic, partition, offset",
        tests=(
            f"{_MERGE}test_whatever_arrives_when_the_rows_come_in_the_order_of_the_rule",
            f"{_MERGE}test_a_restart_from_the_cursor_at_any_row_gives_the_same_rest",
        ),
        file="streams/train/merge.py",
        off=(("first = min(heads)", "first = max(heads)"),),
    ),
    Rule(
        number=13,
        says="a row counts as no later than what follows it in its stream: q33",
        tests=(
            f"{_LOOKAHEAD}test_effective_times_of_long_streams_are_those_of_the_definition",
            f"{_MERGE}test_one_far_head_blocks_nobody",
        ),
        file="streams/train/lookahead.py",
        off=(("WINDOWS: Final = (33, 1024)", "WINDOWS: Final = (1, 1024)"),),
    ),
    Rule(
        number=13,
        says="and q1024, so that forty rows of today do not hold up the past behind them",
        tests=(f"{_MERGE}test_readme_order_has_few_late_rows",),
        file="streams/train/lookahead.py",
        off=(("WINDOWS: Final = (33, 1024)", "WINDOWS: Final = (33, 33)"),),
    ),
    Rule(
        number=13,
        says="a tenth of what follows may be old without drawing a row forward",
        tests=(f"{_MERGE}test_old_rows_draw_few_others_forward",),
        file="streams/train/lookahead.py",
        off=(("found.append(window[(len(window) - 1) // 10])", "found.append(window[0])"),),
    ),
    Rule(
        number=13,
        says="what follows is counted from the row itself, wherever segments and reads end",
        tests=(f"{_LOOKAHEAD}test_heads_do_not_depend_on_how_the_rows_came",),
        file="streams/train/lookahead.py",
        off=(("final = max(0, self.rows - LONGEST + 1)", "final = self.rows"),),
    ),
    Rule(
        number=13,
        says="a bounded run waits until it is there, or the recorded end",
        tests=(f"{_MERGE}test_a_bounded_run_gives_one_order_at_whatever_pace_ingest_brings_it",),
        file="streams/train/merge.py",
        off=(("return self._bounded and not self.retired and", "return False and not self.retired and"),),
    ),
    Rule(
        number=13,
        says="a live head is waited for",
        tests=(f"{_MERGE}test_whatever_arrives_when_the_rows_come_in_the_order_of_the_rule",),
        file="streams/train/merge.py",
        off=(("elif stream_id not in self.idle and not reader.finished:", "elif False:"),),
    ),
    Rule(
        number=13,
        says="but no longer than W",
        tests=(f"{_TRAIN}test_a_silent_partition_is_waited_for_a_while_then_passed_by_and_that_is_journalled",),
        file="streams/train/process.py",
        off=(("                merge.mark_idle(merge.behind())\n", ""),),
    ),
    Rule(
        number=13,
        says="a partition passed by stays idle until it yields",
        tests=(f"{_MERGE}test_a_stream_without_news_is_waited_for_until_it_is_passed_by_and_comes_back",),
        file="streams/train/merge.py",
        off=(
            ("                self.idle.discard(row.stream_id)\n", ""),
            ("        self.idle.discard(row.stream_id)\n        self.cursor", "        self.cursor"),
        ),
    ),
    Rule(
        number=13,
        says="rows behind the front are learnt and counted as late",
        tests=(f"{_COURSE}test_late_rows_are_counted_and_learnt",),
        file="streams/train/watermark.py",
        off=(("time < front.at", "time > front.at"),),
    ),
    Rule(
        number=13,
        says="the front is the lower median of the last 33 record times: one far row moves nothing",
        tests=(
            f"{_COURSE}test_one_row_of_2100_moves_no_front",
            f"{_COURSE}test_after_forty_rows_of_today_few_rows_of_the_past_are_late",
        ),
        file="streams/train/watermark.py",
        off=(("return lower_median(self.times) if self.times else None", "return max(self.times, default=None)"),),
    ),
    Rule(
        number=13,
        says="those 33 times are part of the snapshot: a restart counts as late what one run does",
        tests=(f"{_SNAPSHOTS}test_a_restored_course_has_the_front_it_had",),
        file="streams/train/snapshot_writer.py",
        off=(('    times = (snapshot.manifest or {}).get("record_times")\n', "    times = None\n"),),
    ),
    Rule(
        number=13,
        says="a silence ends by the clocks of payments and labels, which one far record moves nowhere",
        tests=(f"{_SILENCES}test_a_record_of_2100_ends_no_silence",),
        file="streams/train/task_clocks.py",
        off=(("return lower_median(times) if times else None", "return max(times) if times else None"),),
    ),
    Rule(
        number=13,
        says="the clock of labels is when outcomes became known, whatever the record times are",
        tests=(f"{_I}test_train_labels.py::test_chargebacks_of_june_to_august_are_all_learnt_whatever_else_comes",),
        file="streams/train/task_clocks.py",
        off=(("return row.known_at if isinstance", "return row.record_at if isinstance"),),
    ),
    Rule(
        number=13,
        says="what is not drained holds silences back: drained is asked of the broker, not of the log",
        tests=(f"{_SILENCES}test_an_ingest_that_lags_on_labels_is_not_silence",),
        file="streams/train/silences.py",
        off=(("one.position >= max(end, one.log_end)", "one.position >= one.log_end"),),
    ),
    Rule(
        number=13,
        says="labels that are on their way hold silences back",
        tests=(f"{_CLOCKS}test_silence_has_lasted_as_far_as_no_stream_on_its_way_could_break_it",),
        file="streams/train/task_clocks.py",
        off=(("min([reached, *_bounds(labels)])", "reached"),),
    ),
    Rule(
        number=13,
        says="no answer of the broker ends no silence",
        tests=(f"{_SILENCES}test_a_broker_that_does_not_answer_ends_no_silence_and_its_answer_is_kept_for_a_second",),
        file="streams/train/silences.py",
        off=(
            ("        if ends is None:\n            return nothing\n", "        ends = ends or {}\n"),
            (
                "return end is not None and one.position >= max(end, one.log_end)",
                "return one.position >= max(end or 0, one.log_end)",
            ),
        ),
    ),
    Rule(
        number=13,
        says="silence is looked for though no row comes",
        tests=(
            f"{_I}test_train_labels.py::"
            "test_a_running_train_lets_silence_count_soon_after_a_person_said_so_though_no_row_comes",
        ),
        file="streams/train/process.py",
        off=(("                self._look_for_silences(None)  # what", "                pass  # what"),),
    ),
    Rule(
        number=13,
        says="while no label of the task was ever read, no silence ends",
        tests=(
            f"{_SILENCES}test_without_a_label_ever_no_payment_counts_as_good_until_a_person_says_so",
            f"{_OUTCOMES}test_where_no_label_was_ever_read_no_silence_counts_and_the_run_says_so",
        ),
        file="streams/train/silences.py",
        off=(("        return self._assumed\n", "        return True\n"),),
    ),
    Rule(
        number=13,
        says="task clocks follow from the log and the cursor alone",
        tests=(f"{_CLOCKS}test_clocks_kept_row_by_row_are_those_that_the_log_gives_at_each_cursor",),
        file="storage/log/event_log.py",
        off=(('    rows = rows.filter(pc.less(rows["offset"], offset))\n', ""),),
    ),
    Rule(
        number=12,
        says="retention leaves the rows that a task clock is made of",
        tests=(f"{_CLOCKS}test_retention_leaves_the_rows_that_a_clock_is_made_of",),
        file="storage/log/log_retention.py",
        off=(
            (
                "for one in found if one.first_segment is not None), default=_NO_END)",
                "for one in ()), default=_NO_END)",
            ),
        ),
    ),
    Rule(
        number=14,
        says="a label that comes after its silence is learnt as a correction, once",
        tests=(
            f"{_U}test_outcomes.py::"
            "test_silence_to_the_horizon_is_a_negative_label_once_and_whoever_speaks_later_corrects_it",
            f"{_I}test_train_labels.py::"
            "test_labels_that_come_when_all_their_payments_are_silent_are_learnt_as_corrections",
        ),
        file="streams/train/label_resolution.py",
        off=(("    if not kept.silent or kept.corrected:\n", "    if kept.closed:\n"),),
    ),
    Rule(
        number=14,
        says="a repetition sees what was corrected as of its step",
        tests=(
            f"{_OUTCOMES}test_killed_anywhere_and_started_again_it_ends_with_the_same_bytes_and_rows",
            f"{_OUTCOMES}test_a_snapshot_is_rebuilt_from_its_parent_byte_for_byte_and_changes_no_row",
        ),
        file="storage/learning/predictions.py",
        off=(("coalesce(p.corrected_step < :step, false) AS corrected", "p.corrected_step IS NOT NULL AS corrected"),),
    ),
    Rule(
        number=14,
        says="a repetition sees the labels that waited as of its step",
        tests=(f"{_U}test_outcomes.py::test_a_course_repeated_from_any_step_gives_the_same_bytes_and_the_same_rows",),
        file="storage/learning/label_resolutions.py",
        off=((" AND (resolved_step IS NULL OR resolved_step >= :step)\n", " AND resolved_step IS NULL\n"),),
    ),
    Rule(
        number=14,
        says="the journal is written ahead of the step",
        tests=(f"{_TRAIN}test_a_step_is_journalled_before_it_runs_and_a_zombie_can_add_nothing",),
        file="streams/train/process.py",
        off=(
            (
                "            journal.append(self._connection, self._lease, step)\n"
                '        failpoint("train.after_journal")\n',
                '        failpoint("train.after_journal")\n',
            ),
            (
                '        failpoint("train.after_step")\n',
                '        failpoint("train.after_step")\n'
                "        with self._connection.begin():\n"
                "            journal.append(self._connection, self._lease, step)\n",
            ),
        ),
    ),
    Rule(
        number=14,
        says="a journal insert compares the learner's epoch",
        tests=(f"{_SNAPSHOTS}test_a_zombie_publishes_nothing",),
        file="storage/learning/journal.py",
        off=(
            (
                "AND branch = :branch AND epoch = :epoch AND next_step = :step",
                "AND branch = :branch AND CAST(:epoch AS bigint) IS NOT NULL AND next_step = :step",
            ),
        ),
    ),
    Rule(
        number=14,
        says="a snapshot compares the learner's epoch",
        tests=(f"{_SNAPSHOTS}test_a_zombie_publishes_nothing",),
        file="storage/learning/journal.py",
        off=(
            (
                "AND branch = :branch AND epoch = :epoch FOR SHARE",
                "AND branch = :branch AND CAST(:epoch AS bigint) IS NOT NULL FOR SHARE",
            ),
        ),
    ),
    Rule(
        number=14,
        says="a second train fences the first",
        tests=(f"{_TRAIN}test_a_second_train_fences_the_first_which_stops_with_exit_code_3",),
        file="storage/learning/journal.py",
        off=(("SET epoch = epoch + 1 WHERE", "SET epoch = epoch WHERE"), (" AND next_step = :step", "")),
    ),
    Rule(
        number=14,
        says="a restart repeats the journalled steps verbatim",
        tests=(f"{_TRAIN}test_a_restart_repeats_the_journalled_steps_verbatim",),
        file="streams/train/process.py",
        off=(
            (
                "todo = journalled(self._connection, lease.learner, lease.branch, self._next, lease.next_step)",
                "self._next, todo = lease.next_step, list[Step]()",
            ),
        ),
    ),
    Rule(
        number=14,
        says="what a row may see does not depend on what is cached or where a run was restarted",
        tests=(f"{_HISTORIES}test_a_late_row_sees_the_same_whatever_memory_has_forgotten",),
        file="streams/train/step_batches.py",
        off=(("if recent.complete or event > recent.events[0]:", "if True:"),),
    ),
    Rule(
        number=14,
        says="journalled reactions are asserted",
        tests=(
            f"{_TRAIN}test_another_reaction_than_the_journalled_one_is_refused",
            f"{_COURSE}test_a_reaction_other_than_the_journalled_one_is_refused",
        ),
        file="streams/train/step_runner.py",
        off=(("if step.actions != actions:", "if False:"),),
    ),
    Rule(
        number=15,
        says="a writing row commits before the file is written",
        tests=(f"{_SNAPSHOTS}test_before_its_files_are_written_it_is_registered",),
        file="streams/train/snapshot_writer.py",
        off=(
            (
                "    tensors = runner.tensors()\n",
                '    snapshot_files.write(folder, new_id, runner.tensors(), {"sha256": "0"})\n'
                "    tensors = runner.tensors()\n",
            ),
            (
                "    with connection.begin():\n        snapshot_registry.begin(",
                "    if True:\n        snapshot_registry.begin(",
            ),
        ),
    ),
    Rule(
        number=15,
        says="the files are on disk before they get their names, and then their folder is synced",
        tests=(f"{_SNAPSHOTS}test_both_files_and_then_their_folder_are_synced",),
        file="storage/learning/snapshot_files.py",
        off=(("            os.fsync(out.fileno())\n", ""),),
    ),
    Rule(
        number=15,
        says="a name never stands for half a file",
        tests=(
            f"{_SNAPSHOTS}test_a_full_disk_leaves_nothing_behind",
            f"{_SNAPSHOTS}test_a_full_disk_does_not_spoil_what_stood_there_before",
        ),
        file="storage/learning/snapshot_files.py",
        off=(("with unfinished[file].open(", "with file.open("),),
    ),
    Rule(
        number=15,
        says="a fenced process that computes other bytes spoils no file of its successor",
        tests=(f"{_SNAPSHOTS}test_a_zombie_that_computes_other_bytes_spoils_no_file_of_its_successor",),
        file="storage/learning/snapshot_files.py",
        off=(('{snapshot_id}.{sha256[:_NAMED_DIGITS]}.safetensors"', '{snapshot_id}.safetensors"'),),
    ),
    Rule(
        number=15,
        says="progress is acknowledged before the snapshot is live",
        tests=(
            f"{_SNAPSHOTS}test_without_its_progress_acknowledged_it_does_not_become_live",
            f"{_SNAPSHOTS}test_a_snapshot_is_registered_written_told_and_only_then_live",
        ),
        file="streams/train/snapshot_writer.py",
        off=(
            ("    delivered()\n", ""),
            ('    failpoint("train.after_live")\n', '    failpoint("train.after_live")\n    delivered()\n'),
        ),
    ),
    Rule(
        number=15,
        says="a row that is not live is not used",
        tests=(f"{_SNAPSHOTS}test_a_row_without_a_live_file_is_ignored",),
        file="storage/learning/snapshot_registry.py",
        off=(("status = 'live' AND (CAST(:branch", "status <> 'deleting' AND (CAST(:branch"),),
    ),
    Rule(
        number=15,
        says="the hash covers names, types, shapes and bytes, names sorted",
        tests=(f"{_SNAPSHOTS}test_the_digest_covers_names_types_shapes_and_bytes_and_no_order",),
        file="storage/learning/snapshot_files.py",
        off=(("    for name in sorted(tensors):", "    for name in tensors:"),),
    ),
    Rule(
        number=15,
        says="other bytes than were written are refused, and learnt again from the snapshot before",
        tests=(f"{_SNAPSHOTS}test_a_spoilt_file_is_refused_by_its_name",),
        file="storage/learning/snapshot_files.py",
        off=(('if found != sha256 or manifest.get("sha256") != sha256:', "if False:"),),
    ),
    Rule(
        number=16,
        says="a repeated step repeats its id",
        tests=(f"{_TRAIN}test_a_repeated_step_repeats_its_progress_under_the_same_id",),
        file="streams/train/progress.py",
        off=(("            step=step.number,\n", "            step=step.number + 1000 * lease.epoch,\n"),),
    ),
    Rule(
        number=18,
        says="hashes are compared on one device class",
        tests=(
            f"{_REPLAYED}test_what_cannot_be_rebuilt_is_refused_with_exit_code_3",
            f"{_REPLAYED}test_another_number_of_threads_is_another_device_class",
        ),
        file="streams/train/journal_replay.py",
        off=(('if manifest["device_class"] != device_class():', "if False:"),),
    ),
    Rule(
        number=18,
        says="a bounded run waits without bound up to the ends it met, and its steps hold n rows",
        tests=(f"{_TRAIN}test_a_bounded_run_waits_without_bound_for_what_the_topics_held_and_learns_it_in_full_steps",),
        file="streams/train/process.py",
        off=(
            (
                "            if ends is not None:\n                if merge.at_ends():\n                    break\n",
                "            if ends is not None and merge.at_ends():\n                break\n",
            ),
        ),
    ),
    Rule(
        number=18,
        says="snapshots touched by an erasure are refused",
        tests=(f"{_REPLAYED}test_what_cannot_be_rebuilt_is_refused_with_exit_code_3",),
        file="streams/train/journal_replay.py",
        off=(("    if snapshot.irreproducible:", "    if False:"),),
    ),
    Rule(
        number=10,
        says="a step learns no row of a user who was erased while it was gathered",
        tests=(f"{_FORGOTTEN}test_what_was_read_ahead_of_an_erased_user_is_not_learnt",),
        file="streams/train/step_runner.py",
        off=(("for row, other in named if not concerns(self._erased, row.user, other)]", "for row, _ in named]"),),
    ),
    Rule(
        number=14,
        says="forgetting is part of the step: a repetition forgets at the same place",
        tests=(f"{_FORGOTTEN}test_forgetting_is_part_of_the_step_when_the_journal_is_replayed",),
        file="streams/train/step_runner.py",
        off=(
            (
                "connection, rows, erased=step.erased, number=step.number",
                "connection, rows, number=step.number",
            ),
        ),
    ),
    Rule(
        number=14,
        says="steps from before an erasure are repeated without the rows that are gone",
        tests=(f"{_FORGOTTEN}test_repeated_steps_go_on_without_the_rows_that_are_gone",),
        file="streams/train/merge.py",
        off=(("        if not rows_erased and (not rows", "        if (not rows"),),
    ),
    Rule(
        number=15,
        says="snapshots that may name an erased user are collected once a younger one has forgotten",
        tests=(f"{_FORGOTTEN}test_snapshots_that_name_the_erased_are_collected_once_a_younger_one_has_forgotten",),
        file="storage/learning/snapshot_gc.py",
        off=(("    naming = len(connection.execute(_MARK_NAMING).all())\n", "    naming = 0\n"),),
    ),
    Rule(
        number=12,
        says="of a sequence stays as much as the longest history",
        tests=(f"{_I}test_storage_trimming.py::test_no_history_that_the_log_can_still_ask_for_changes",),
        file="storage/sequences/sequence_retention.py",
        off=(("SELECT coalesce(sum(k.events), 0) >= :keep\n", "SELECT coalesce(sum(k.events), 0) >= 0\n"),),
    ),
    Rule(
        number=12,
        says="a late record that overtakes the trimming of sequences undoes it",
        tests=(f"{_I}test_storage_trimming.py::test_a_late_record_that_comes_meanwhile_stops_it",),
        file="storage/sequences/sequence_retention.py",
        off=(("    if (_needed_from(connection) or 0) < needed_from:\n", "    if False:\n"),),
    ),
    Rule(
        number=19,
        says="one REPEATABLE READ READ ONLY transaction reads registry, watermark and histories",
        tests=(
            f"{_I}score/test_score_trouble.py::"
            "test_user_state_is_read_in_one_repeatable_read_transaction_that_cannot_write",
        ),
        file="scoring/serve/state_reader.py",
        off=(('isolation_level="REPEATABLE READ", postgresql_readonly=True', 'isolation_level="READ COMMITTED"'),),
    ),
)
