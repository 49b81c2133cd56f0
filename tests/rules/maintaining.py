"""Rules of compaction, retention, collection and erasure, their tests and their switches."""

from __future__ import annotations

from tests.rules.rule import Rule

_I = "tests/integration/"
_DUPLICATES = f"{_I}test_ingest_duplicates.py::"
_PROCESSES = f"{_I}test_ingest_processes.py::"
_SEALING = f"{_I}test_storage_compaction.py::"
_RETENTION = f"{_I}test_storage_retention.py::"
_TRIMMING = f"{_I}test_storage_trimming.py::"
_CLOCKS = "tests/unit/contracts/test_clocks.py::"
_ERASURE = f"{_I}test_erasure.py::"
_SHARED = "            suppression.share(self._connection)\n"
_LOOKED = "            self._meet_erased(suppression.current(self._connection, self._suppressed))\n"

MAINTENANCE_RULES: tuple[Rule, ...] = (
    Rule(
        number=12,
        says="age is counted behind the newest good time of a stream, not behind its largest",
        tests=(
            f"{_RETENTION}test_one_false_record_makes_no_others_old_and_keeps_none",
            f"{_TRIMMING}test_one_event_of_2100_makes_no_others_old",
            f"{_CLOCKS}test_no_sixteen_false_times_ahead_and_eight_behind_move_a_stream",
        ),
        file="contracts/clocks.py",
        off=(("return int(last[~_is_far(last[None, :], last)].max())", "return int(last.max())"),),
    ),
    Rule(
        number=12,
        says="and a record ahead of its stream keeps no segment",
        tests=(
            f"{_RETENTION}test_one_false_record_makes_no_others_old_and_keeps_none",
            f"{_RETENTION}test_what_lies_ahead_of_its_stream_keeps_no_log_for_the_sake_of_an_open_label",
        ),
        file="storage/log/log_retention.py",
        off=(("if not row.doubtful or (", "if True or ("),),
    ),
    Rule(
        number=12,
        says="unless many records of the log say so: a present ahead of the past that is brought in stays",
        tests=(f"{_RETENTION}test_the_present_ahead_of_the_past_stays_while_the_past_comes_in",),
        file="storage/log/log_retention.py",
        off=(("event_log.highest(connection, stream_id) or newest", "newest"),),
    ),
    Rule(
        number=10,
        says="a running `ingest` goes on after an erasure, with what is true now",
        tests=(
            f"{_DUPLICATES}test_after_an_erasure_a_running_owner_goes_on_with_what_is_true_now",
            f"{_ERASURE}test_an_owner_that_wrote_before_an_erasure_writes_no_row_and_no_name_after_it",
            f"{_PROCESSES}test_an_erasure_does_not_make_a_running_process_join_its_group_again",
        ),
        file="streams/ingest/batch_writer.py",
        off=((_LOOKED, ""),),
    ),
    Rule(
        number=10,
        says="a batch looks who is erased when no erasure can pass by any more",
        tests=(f"{_ERASURE}test_a_batch_that_had_to_wait_for_an_erasure_knows_of_it",),
        file="streams/ingest/batch_writer.py",
        off=((_SHARED + _LOOKED, _LOOKED + _SHARED),),
    ),
    Rule(
        number=10,
        says="an erasure waits for a batch from before its first row",
        tests=(f"{_ERASURE}test_an_erasure_waits_for_a_batch_in_flight_and_takes_its_rows_too",),
        file="streams/ingest/batch_writer.py",
        off=((_SHARED, ""),),
    ),
    Rule(
        number=10,
        says="an erasure waits for a batch in flight and finds its rows",
        tests=(f"{_ERASURE}test_an_erasure_waits_for_a_batch_in_flight_and_takes_its_rows_too",),
        file="storage/privacy/suppression.py",
        off=(
            ('    connection.execute(_ALONE, {"lock": _BATCHES})\n', ""),
            ("    connection.execute(_HOLD_STREAMS)\n    connection.execute(_ADD", "    connection.execute(_ADD"),
            ("    connection.execute(_RAISE)\n", ""),
        ),
    ),
    Rule(
        number=10,
        says="dead letters that name erased users are kept empty",
        tests=(f"{_ERASURE}test_after_a_full_replay_nothing_came_back",),
        file="streams/ingest/batch_writer.py",
        off=(("if letter.names(suppressed) else letter", "if False else letter"),),
    ),
    Rule(
        number=10,
        says="a list of users to erase is cut at line ends alone, and nothing else of a line is taken off",
        tests=("tests/unit/driftline/test_id_lists.py::test_an_id_is_what_stands_in_its_line",),
        file="driftline/id_lists.py",
        off=(
            ("content.removeprefix(BOM_UTF8)", "content"),
            (r'if line := line.removesuffix(b"\r"):', "if line := line.strip():"),
        ),
    ),
    Rule(
        number=10,
        says="who was asked to be erased and never known is told at every call, and nobody else is",
        tests=(
            f"{_ERASURE}test_who_is_unknown_stays_so_however_often_it_is_asked_and_who_was_erased_is_known",
            f"{_ERASURE}test_an_interrupted_erasure_still_knows_whom_it_found",
        ),
        file="storage/privacy/row_erasure.py",
        off=(
            ("    suppression.found(connection, _names_in(rows.filter(pa.array(named))) & set(users))\n", ""),
            ("    suppression.found(connection, {row.value for row in rows})\n", ""),
        ),
    ),
    Rule(
        number=11,
        says="two who replace rows of one user do so one after the other",
        tests=(f"{_SEALING}test_a_second_sealer_waits_for_the_first_and_then_sees_its_rows",),
        file="storage/sequences/compaction.py",
        off=(('    connection.execute(_LOCK, {"space": LOCK_SPACE, "users": list(users)})\n', ""),),
    ),
    Rule(
        number=11,
        says="what has nothing in it leaves no empty row",
        tests=(f"{_SEALING}test_compaction_nothing_makes_no_row",),
        file="storage/sequences/compaction.py",
        off=(
            (
                "        FROM events e JOIN ends x",
                "        FROM events e RIGHT JOIN (SELECT * FROM ends UNION ALL SELECT 0, 0, NULL, NULL) x",
            ),
            ("SELECT e.user_id, 0, nextval", "SELECT coalesce(e.user_id, 0), 0, nextval"),
        ),
    ),
    Rule(
        number=11,
        says="compacted rows stand under a stream that no owner has",
        tests=(f"{_SEALING}test_compacted_rows_say_what_they_hold_and_owners_never_meet_them",),
        file="storage/sequences/compaction.py",
        off=(
            (
                "SELECT e.user_id, 0, nextval('user_segment_sealed'), 0,",
                "SELECT e.user_id, min(e.stream), nextval('user_segment_sealed'), 0,",
            ),
        ),
    ),
    Rule(
        number=12,
        says="the log stays from the cursor of a kept snapshot's parent on",
        tests=(f"{_RETENTION}test_the_log_stays_from_the_cursor_of_a_kept_snapshots_parent_on",),
        file="storage/log/log_retention.py",
        off=(("ELSE coalesce(p.cursor, s.cursor) END", "ELSE s.cursor END"),),
    ),
    Rule(
        number=12,
        says="a learner without a snapshot keeps all of the log",
        tests=(f"{_RETENTION}test_every_learner_counts",),
        file="storage/log/log_retention.py",
        off=(("            return None\n        cursor =", "            continue\n        cursor ="),),
    ),
    Rule(
        number=12,
        says="an open label keeps the log from its reference time on",
        tests=(f"{_RETENTION}test_an_open_label_keeps_the_log_from_its_reference_time_on",),
        file="storage/log/log_retention.py",
        off=(
            (
                "OR last_event_at >= CAST(:open_from AS timestamptz))",
                "OR (false AND CAST(:open_from AS timestamptz) IS NULL))",
            ),
        ),
    ),
    Rule(
        number=12,
        says="the duplicate window stays in the log",
        tests=(f"{_RETENTION}test_the_duplicate_window_stays_in_the_log",),
        file="storage/log/log_retention.py",
        off=(("            row.next_offset - policy.duplicate_window,\n", ""),),
    ),
    Rule(
        number=15,
        says="pinned snapshots, the newest, and the parents of both are not collected",
        tests=(f"{_RETENTION}test_the_newest_stay_and_pinned_ones_and_the_parents_of_both",),
        file="storage/learning/snapshot_gc.py",
        off=(("k.id = s.id OR k.parent = s.id", "k.id = s.id"),),
    ),
    Rule(
        number=15,
        says="a learner never takes up what is being collected",
        tests=(f"{_RETENTION}test_a_learner_never_takes_up_what_is_being_collected",),
        file="storage/learning/snapshot_registry.py",
        off=(("    if collected is not None:", "    if False:"),),
    ),
    Rule(
        number=15,
        says="a learner that starts anew after it was retired gives no snapshot id twice",
        tests=(f"{_I}test_retire.py::test_one_that_starts_anew_has_settings_and_snapshot_ids_of_its_own",),
        file="storage/learning/journal.py",
        off=(("(SELECT coalesce(max(branch), 0) FROM retired_learner WHERE name = :name)", "0"),),
    ),
    Rule(
        number=18,
        says="a running `ingest` forgets the strings of people when somebody was erased",
        tests=(f"{_ERASURE}test_an_owner_forgets_whom_it_knew_by_name_with_its_next_batch",),
        file="streams/ingest/batch_writer.py",
        off=(("            self._vocabulary.forget_people()\n", "            pass\n"),),
    ),
    Rule(
        number=18,
        says="snapshots touched by an erasure are irreproducible",
        tests=(f"{_ERASURE}test_snapshots_learnt_from_an_erased_user_are_irreproducible_and_learners_are_told",),
        file="storage/privacy/row_erasure.py",
        off=(("WHERE NOT irreproducible AND (cursor", "WHERE false AND (cursor"),),
    ),
    Rule(
        number=18,
        says="snapshots that keep names are marked where retention removed what would tell who stands in them",
        tests=(
            f"{_I}test_train_erasure.py::"
            "test_snapshots_that_name_whom_retention_has_left_no_event_of_are_collected_too",
        ),
        file="storage/privacy/row_erasure.py",
        off=(
            (
                "    if sequence_retention.erase(connection, ids) or payees:\n",
                "    if sequence_retention.erase(connection, ids) and False:\n",
            ),
        ),
    ),
)
