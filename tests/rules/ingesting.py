"""Rules of `ingest` and of what it writes, their tests and their switches."""

from __future__ import annotations

from tests.rules.rule import Rule

_I = "tests/integration/"
_FENCING = f"{_I}test_storage_fencing.py::"
_DUPLICATES = f"{_I}test_ingest_duplicates.py::"
_ORIGINS = f"{_I}test_ingest_origins.py::"
_HEADERS = f"{_I}test_foreign_headers.py::"
_RECORDS = f"{_I}test_ingest_records.py::"
_POSITIONS = f"{_I}test_ingest_positions.py::"
_PROCESSES = f"{_I}test_ingest_processes.py::"
_KAFKA = f"{_I}test_ingest_kafka.py::"
_JOINS = f"{_I}test_ingest_joins.py::"
_VOCABULARY = f"{_I}test_storage_vocabulary.py::"
_ITEMS = f"{_I}test_items.py::"
_CHECKS = "tests/unit/streams/test_positions.py::"
_SESSIONS = "tests/unit/storage/test_sessions.py::"

_TWO_STATEMENTS = """        keys = "s.user_id, s.stream_id, s.first_offset, s.epoch"
        seen = raw.execute(f"SELECT {keys} FROM user_segment s".encode()).fetchall()
        of_rows = "%(c0)s::bigint[], %(c1)s::int[], %(c2)s::bigint[], %(c3)s::bigint[]"
        only = f"WHERE ({keys}) IN (SELECT * FROM unnest({of_rows})) AND s.user_id = u.id AND (s.last_at"
        second = _ROWS.replace("WHERE s.user_id = u.id AND (s.last_at", only).encode()
        values = {**values, **{f"c{i}": [row[i] for row in seen] for i in range(4)}}
        result = reader.execute(second, values).pgresult"""

INGEST_RULES: tuple[Rule, ...] = (
    Rule(
        number=6,
        says="which records are far ahead is judged by the log: a new owner goes on where the one before was",
        tests=(
            f"{_I}test_ingest_far.py::test_far_records_are_the_same_however_they_come_in_and_whoever_takes_them_over",
        ),
        file="streams/ingest/batch_writer.py",
        off=(('last = event_log.last_times(self._connection, claim.stream_id, "record_at")', "last = list[int]()"),),
    ),
    Rule(
        number=1,
        says="a batch commits only under the newest epoch",
        tests=(f"{_FENCING}test_an_owner_of_an_older_epoch_commits_nothing",),
        file="storage/log/offsets.py",
        off=(
            (
                "WHERE stream_id = :id AND epoch = :epoch AND next_offset = :first",
                "WHERE stream_id = :id AND CAST(:epoch AS bigint) IS NOT NULL AND next_offset = :first",
            ),
        ),
    ),
    Rule(
        number=1,
        says="a batch commits only from the stored offset on",
        tests=(f"{_FENCING}test_a_batch_starts_where_the_last_one_ended",),
        file="storage/log/offsets.py",
        off=(
            (
                "AND epoch = :epoch AND next_offset = :first AND",
                "AND epoch = :epoch AND CAST(:first AS bigint) IS NOT NULL AND",
            ),
        ),
    ),
    Rule(
        number=1,
        says="all partitions of a batch move, or none",
        tests=(f"{_FENCING}test_all_partitions_of_a_batch_move_or_none",),
        file="storage/log/offsets.py",
        off=(
            (
                '            raise Fenced(\n                f"{move.claim.stream}: offset',
                "            connection.commit()\n"
                '            raise Fenced(\n                f"{move.claim.stream}: offset',
            ),
        ),
    ),
    Rule(
        number=1,
        says="a claim ends the former owner's backend, and so waits for nobody",
        tests=(
            f"{_FENCING}test_a_claim_waits_for_no_former_owner",
            f"{_PROCESSES}test_a_process_frozen_before_its_commit_is_replaced_and_wakes_up_harmless",
        ),
        file="storage/log/offsets.py",
        off=(("a.pid <> pg_backend_pid()", "a.pid IS NULL"),),
    ),
    Rule(
        number=1,
        says="an owner that gives a stream away in an orderly rebalance says so",
        tests=(f"{_JOINS}test_a_process_that_joins_ends_nobodys_session",),
        file="streams/ingest/consumer_session.py",
        off=(("        self._settle_for_good()\n        self._release()\n", "        self._settle_for_good()\n"),),
        kafka=True,
    ),
    Rule(
        number=1,
        says="only the session of an owner that still holds the stream is ended",
        tests=(f"{_FENCING}test_an_owner_that_gave_a_stream_away_is_not_ended_and_goes_on_with_its_others",),
        file="storage/log/offsets.py",
        off=(("SET owner_pid = NULL, owner_started = NULL WHERE", "SET owner_pid = owner_pid WHERE"),),
    ),
    Rule(
        number=1,
        says="a release that comes late clears nobody else's claim",
        tests=(f"{_FENCING}test_a_release_that_comes_late_clears_nobody_elses_claim",),
        file="storage/log/offsets.py",
        off=(
            (
                "owner_started = NULL WHERE stream_id = :id AND epoch = :epoch",
                "owner_started = NULL WHERE stream_id = :id AND CAST(:epoch AS bigint) IS NOT NULL",
            ),
        ),
    ),
    Rule(
        number=1,
        says="a slot in the group belongs to one living session, so no two members have one name",
        tests=(
            "tests/integration/test_storage_slots.py::"
            "test_each_session_takes_the_lowest_free_slot_and_frees_it_with_its_end",
        ),
        file="storage/log/group_slots.py",
        off=(
            (
                "SELECT pg_try_advisory_lock(:space, hashtext(:name))",
                "SELECT CAST(:space AS int) > 0 AND CAST(:name AS text) IS NOT NULL",
            ),
        ),
    ),
    Rule(
        number=1,
        says="the backend ended is the one that claimed: its start is compared too",
        tests=(f"{_FENCING}test_only_the_backend_that_claimed_is_ended_not_one_that_got_its_number",),
        file="storage/log/offsets.py",
        off=((" AND a.backend_start = s.owner_started", ""),),
    ),
    Rule(
        number=1,
        says="keys contain the epoch, so a frozen owner's rows are in nobody's way",
        tests=(f"{_FENCING}test_rows_of_a_frozen_owner_do_not_stand_in_the_way",),
        file="storage/log/event_log.py",
        off=(('"epoch": segment.claim.epoch,', '"epoch": 0,'),),
    ),
    Rule(
        number=1,
        says="an owner outside the group is refused with exit code 3",
        tests=(f"{_PROCESSES}test_of_two_owners_outside_one_group_the_former_stops_and_says_what_to_do",),
        file="streams/ingest/consumer_session.py",
        off=(("        if taken:\n            metrics", "        if False:\n            metrics"),),
    ),
    Rule(
        number=1,
        says="after an unknown outcome memory is dropped and the group joined again",
        tests=(f"{_PROCESSES}test_a_connection_that_breaks_at_commit_leaves_the_outcome_to_postgres",),
        file="streams/ingest/process.py",
        off=(
            (
                "            raise Rejoin(str(error)) from error\n        except Disorder",
                "            raise\n        except Disorder",
            ),
            ("except (Unavailable, Transient) as error:", "except Transient as error:"),
        ),
    ),
    Rule(
        number=1,
        says="the backend ended is still its owner's: a pooler gives one of a client that is gone to the next",
        tests=(f"{_I}test_pooler.py::test_the_client_that_got_a_dead_owners_backend_is_not_ended",),
        file="storage/log/offsets.py",
        off=(("WHERE l.pid = a.pid AND l.locktype", "WHERE true OR l.locktype"),),
    ),
    Rule(
        number=1,
        says="synchronous_commit is set by statement on each connection, whatever URL, role or database say",
        tests=(
            f"{_I}test_sessions.py::test_a_setting_of_the_database_changes_nothing",
            f"{_I}test_pooler.py::test_in_session_mode_the_promise_stands",
        ),
        file="storage/postgres/sessions.py",
        off=(("THEN 'remote_apply' ELSE 'on' END, false)", "THEN 'remote_apply' ELSE 'on' END, true)"),),
    ),
    Rule(
        number=1,
        says="what is set is read back, and refused by name where it is not so",
        tests=(f"{_SESSIONS}test_a_setting_that_is_not_as_it_was_set_is_refused_by_name",),
        file="storage/postgres/sessions.py",
        off=(("        if found[name] != value:", "        if False:"),),
    ),
    Rule(
        number=1,
        says="a commit that could be lost is refused",
        tests=(f"{_SESSIONS}test_a_commit_that_may_be_lost_is_refused",),
        file="storage/postgres/sessions.py",
        off=(("    if found[_COMMIT] not in _DURABLE:", "    if False:"),),
    ),
    Rule(
        number=1,
        says="a pooler that shares its servers is refused at the start",
        tests=(f"{_I}test_pooler.py::test_a_pooler_that_shares_its_servers_is_refused_at_start",),
        file="storage/postgres/sessions.py",
        off=(("    if taken == raw.backend or backend != raw.backend or token != raw.token:", "    if False:"),),
    ),
    Rule(
        number=1,
        says="a transaction that meets a session set up by somebody else is refused before it writes",
        tests=(
            f"{_I}test_pooler.py::test_a_transaction_that_meets_another_server_process_is_refused_before_it_writes",
        ),
        file="storage/postgres/sessions.py",
        off=(("    if token == raw.token and commit in _DURABLE:", "    if commit in _DURABLE:"),),
    ),
    Rule(
        number=1,
        says="after a failover or a restore nothing that was known of the other server is used",
        tests=(f"{_I}test_postgres_away.py::test_a_standby_is_waited_for_and_its_promotion_is_another_server",),
        file="storage/engine.py",
        off=(("        if found is not None and found != self._known:", "        if False:"),),
    ),
    Rule(
        number=2,
        says="positions come from the claim, not from Kafka",
        tests=(f"{_POSITIONS}test_what_the_group_committed_in_kafka_does_not_matter",),
        file="streams/ingest/consumer_session.py",
        off=(("TopicPartition(*place, claim.next_offset) for place", "TopicPartition(*place) for place"),),
    ),
    Rule(
        number=2,
        says="on_assign lets nothing escape and keeps the error for the loop",
        tests=(f"{_POSITIONS}test_without_postgres_nothing_is_assigned_and_it_comes_back_by_itself",),
        file="streams/ingest/consumer_session.py",
        off=(
            (
                "            self._failure = error\n            self._claims.clear()\n            consumer.assign([])",
                "            self._claims.clear()\n            consumer.assign([])",
            ),
        ),
    ),
    Rule(
        number=3,
        says="another cluster is refused",
        tests=(
            f"{_CHECKS}test_another_topic_is_refused_with_the_reason_and_the_way_on",
            f"{_POSITIONS}test_another_cluster_is_refused",
        ),
        file="streams/ingest/start_positions.py",
        off=(("if stream.cluster_id != topic.cluster_id:", "if False:"),),
    ),
    Rule(
        number=3,
        says="a recreated topic is refused",
        tests=(
            f"{_CHECKS}test_another_topic_is_refused_with_the_reason_and_the_way_on",
            f"{_POSITIONS}test_a_recreated_topic_is_refused_at_the_start",
        ),
        file="streams/ingest/start_positions.py",
        off=(("if stream.topic_id != topic.topic_id:", "if False:"),),
    ),
    Rule(
        number=3,
        says="another partition count is refused",
        tests=(
            f"{_CHECKS}test_another_topic_is_refused_with_the_reason_and_the_way_on",
            f"{_POSITIONS}test_another_partition_count_is_refused",
        ),
        file="streams/ingest/start_positions.py",
        off=(("if len(current) != topic.partitions:", "if False:"),),
    ),
    Rule(
        number=3,
        says="an offset below the low watermark is refused",
        tests=(
            f"{_CHECKS}test_a_topic_that_lost_its_beginning_is_refused",
            f"{_POSITIONS}test_offsets_before_the_low_watermark_are_refused",
        ),
        file="streams/ingest/start_positions.py",
        off=(("if held.next_offset < low:", "if False:"),),
    ),
    Rule(
        number=3,
        says="records deleted before they were read are refused",
        tests=(f"{_KAFKA}test_records_deleted_before_they_were_read_are_refused",),
        file="streams/ingest/start_positions.py",
        off=(("if held.next_offset < low:", "if False:"),),
        kafka=True,
    ),
    Rule(
        number=3,
        says="an offset beyond the end is refused",
        tests=(f"{_KAFKA}test_a_topic_that_lost_its_end_is_refused",),
        file="streams/ingest/start_positions.py",
        off=(("if trust_high and held.next_offset > high:", "if False:"),),
        kafka=True,
    ),
    Rule(
        number=3,
        says="but Tansu's end, which may be too low, is not believed",
        tests=(f"{_CHECKS}test_a_topic_that_lost_its_end_is_refused_where_ends_can_be_trusted",),
        file="streams/ingest/start_positions.py",
        off=(("if trust_high and held", "if held"),),
    ),
    Rule(
        number=3,
        says="topics are watched under way: growth is refused",
        tests=(f"{_KAFKA}test_a_growing_topic_is_refused_under_way",),
        file="streams/ingest/consumer_session.py",
        off=(("                self._check_topics()\n", ""),),
        kafka=True,
    ),
    Rule(
        number=3,
        says="topic ids are asked for between the last fetch and the commit",
        tests=(
            f"{_I}test_ingest_recreated.py::"
            "test_a_batch_whose_topic_was_created_again_after_its_last_fetch_is_not_committed",
        ),
        file="streams/ingest/consumer_session.py",
        off=(("        if found != claimed:\n", "        if False:\n"),),
        kafka=True,
    ),
    Rule(
        number=2,
        says="no option of a user decides what happens to deleted ranges",
        tests=(
            "tests/unit/runtime/test_kafka_options.py::"
            "test_an_option_that_the_promise_stands_on_is_refused_by_its_name",
            f"{_I}test_kafka_options.py::test_every_verb_refuses_an_option_that_overrides_the_promise",
        ),
        file="runtime/kafka_options.py",
        off=(("    if name in PROMISED:\n", "    if False:\n"),),
    ),
    Rule(
        number=2,
        says="the clients keep what the promise stands on, whatever options they are given",
        tests=("tests/unit/runtime/test_kafka_options.py::test_nothing_that_slipped_through_wins_over_the_promise",),
        file="runtime/kafka.py",
        off=(
            (
                '        **kafka_options.for_client(config.options, "consumer"),\n',
                "",
            ),
            (
                '        "isolation.level": "read_committed",\n',
                '        "isolation.level": "read_committed",\n'
                '        **kafka_options.for_client(config.options, "consumer"),\n',
            ),
        ),
        kafka=True,
    ),
    Rule(
        number=3,
        says="compaction of an event topic is noticed",
        tests=(f"{_I}test_topic_settings.py::test_a_compacted_event_topic_is_noticed_and_ingest_reads_on_unready",),
        file="streams/ingest/topic_watch.py",
        off=(("        if not settings.compacts or topic == topics.ITEMS:\n", "        if True:\n"),),
        kafka=True,
    ),
    Rule(
        number=3,
        says="a lag older than its topic's retention is not ready",
        tests=(
            f"{_I}test_topic_settings.py::"
            "test_a_lag_older_than_the_retention_is_not_ready_and_one_older_than_half_of_it_is_said",
            f"{_I}test_topic_settings.py::test_only_what_lies_before_the_first_young_record_endangers",
        ),
        file="streams/ingest/topic_watch.py",
        off=(("            if claim.next_offset < over[place]:\n", "            if False:\n"),),
        kafka=True,
    ),
    Rule(
        number=3,
        says="`verify` tells of what a topic deleted unread",
        tests=(
            f"{_I}test_topic_settings.py::test_what_was_deleted_unread_fails_verify",
            f"{_I}test_topic_settings.py::"
            "test_a_stream_that_begins_above_0_is_said_with_the_number_by_ingest_and_verify",
        ),
        file="driftline/audit/settings_check.py",
        off=(
            ("    if stream.life == 1 and not stream.kept_from and stream.begins > 0:\n", "    if False:\n"),
            ("stream.next_offset if stream.next_offset < low else None", "None"),
        ),
        kafka=True,
    ),
    Rule(
        number=13,
        says="`replay` sends nothing that a topic would delete or refuse",
        tests=(
            f"{_I}test_topic_settings.py::test_replay_refuses_before_it_sends_what_a_topic_would_not_keep",
            f"{_I}test_topic_settings.py::test_replay_refuses_for_the_topic_of_its_labels_too",
        ),
        file="driftline/recorded/publisher.py",
        off=(("    if not despite_settings:\n", "    if False:\n"),),
        kafka=True,
    ),
    Rule(
        number=4,
        says="a range without records is a segment too",
        tests=(f"{_DUPLICATES}test_a_batch_without_records_still_covers_its_offsets",),
        file="streams/ingest/batch_writer.py",
        off=(
            (
                "            segments.append(_segment(part, outcome, rows))",
                "            if rows.num_rows:\n                segments.append(_segment(part, outcome, rows))",
            ),
        ),
    ),
    Rule(
        number=4,
        says="a batch ends at position(), past markers and aborted records",
        tests=(f"{_KAFKA}test_aborted_records_are_never_read_and_their_offsets_are_covered",),
        file="streams/ingest/consumer_session.py",
        off=(
            (
                "next_offset = max(partition.offset, claim.next_offset)",
                "next_offset = taken.next if (taken := self._collector.intakes.get(place)) else claim.next_offset",
            ),
        ),
        kafka=True,
    ),
    Rule(
        number=4,
        says="aborted records are not read",
        tests=(
            f"{_KAFKA}test_aborted_records_are_never_read_and_their_offsets_are_covered",
            f"{_KAFKA}test_an_open_transaction_is_waited_for",
        ),
        file="runtime/kafka.py",
        off=(('"isolation.level": "read_committed"', '"isolation.level": "read_uncommitted"'),),
        kafka=True,
    ),
    Rule(
        number=4,
        says="readers check the chain",
        tests=(f"{_DUPLICATES}test_a_missing_segment_is_noticed_by_readers",),
        file="storage/log/event_log.py",
        off=(("if (row.first_offset > offset) if expected is None else (row.first_offset != expected):", "if False:"),),
    ),
    Rule(
        number=5,
        says="the filter is rebuilt after a claim",
        tests=(
            f"{_DUPLICATES}test_the_next_owner_knows_what_the_former_one_accepted",
            f"{_I}test_ingest_machine.py::test_any_order_of_batches_crashes_and_zombies_takes_each_event_once",
        ),
        file="streams/ingest/batch_writer.py",
        off=(("        while at < claim.next_offset:", "        while False:"),),
    ),
    Rule(
        number=5,
        says="the window reaches as far back as promised",
        tests=(f"{_DUPLICATES}test_a_repeat_within_the_window_is_known_and_memory_forgets_behind_it",),
        file="streams/ingest/batch_writer.py",
        off=(("max(claim.next_offset - self._window, start)", "max(claim.next_offset - self._window // 10, start)"),),
    ),
    Rule(
        number=5,
        says="the filter learns after the commit only",
        tests=(f"{_DUPLICATES}test_a_batch_that_is_rolled_back_is_not_remembered",),
        file="streams/ingest/batch_writer.py",
        off=(
            (
                '            failpoint("ingest.after_rows")\n',
                "            for early in written:\n"
                "                self._filters[early.claim.stream_id].extend(early.digests, early.offsets)\n",
            ),
        ),
    ),
    Rule(
        number=5,
        says="a hit is confirmed by rows",
        tests=(f"{_DUPLICATES}test_events_that_share_a_digest_are_all_accepted",),
        file="streams/ingest/batch_writer.py",
        off=(("duplicate[confirm(suspicions, claim)] = True", "duplicate[hits] = True"),),
    ),
    Rule(
        number=5,
        says="a record repeated inside a batch counts once",
        tests=(f"{_DUPLICATES}test_a_record_is_accepted_once_in_one_batch_and_over_batches",),
        file="streams/ingest/batch_writer.py",
        off=(
            (
                "duplicate[index] = _identity(rows, earlier) == _identity(rows, index)",
                "duplicate[index] = False",
            ),
        ),
    ),
    Rule(
        number=5,
        says="a replayed dead letter is known by its origin, without a window",
        tests=(f"{_ORIGINS}test_a_dead_letter_comes_in_once_however_it_is_mended",),
        file="streams/ingest/batch_writer.py",
        off=(("        if believed:\n", "        if False:\n"),),
    ),
    Rule(
        number=5,
        says="an origin header proves itself",
        tests=(
            f"{_ORIGINS}test_a_stranger_cannot_use_a_letter_up",
            f"{_ORIGINS}test_a_header_copied_to_another_record_proves_nothing",
            f"{_ORIGINS}test_the_proof_of_another_installation_proves_nothing",
        ),
        file="streams/ingest/replay_proofs.py",
        off=((" if each.proven(self._secret, claimed.record)), None)", "), None)"),),
    ),
    Rule(
        number=5,
        says="the proof covers the whole record",
        tests=(f"{_ORIGINS}test_a_header_copied_to_another_record_proves_nothing",),
        file="contracts/origins.py",
        off=(("for part in (topic.encode(), key, value):", 'for part in (b"",):'),),
    ),
    Rule(
        number=5,
        says="and the body too, so that another event of the same user is not dropped",
        tests=(f"{_ORIGINS}test_a_header_copied_to_another_record_proves_nothing",),
        file="contracts/origins.py",
        off=(("for part in (topic.encode(), key, value):", "for part in (topic.encode(), key):"),),
    ),
    Rule(
        number=5,
        says="a replay repeats a dead letter that stands in the table",
        tests=(f"{_ORIGINS}test_a_proof_without_its_dead_letter_is_ignored",),
        file="streams/ingest/replay_proofs.py",
        off=(
            (
                "(letter, there[letter]) for offset, letter in proven.items() if letter in there",
                "(letter, there.get(letter, False)) for offset, letter in proven.items()",
            ),
        ),
    ),
    Rule(
        number=5,
        says="and of the record's own topic",
        tests=(f"{_ORIGINS}test_a_proof_without_its_dead_letter_is_ignored",),
        file="storage/log/dead_letters.py",
        off=((" AND f.topic = :topic", " AND CAST(:topic AS text) IS NOT NULL"),),
    ),
    Rule(
        number=5,
        says="a replay that repeats a known record uses no letter up, whatever batch that stands in",
        tests=(f"{_ORIGINS}test_what_a_replay_does_is_the_same_however_records_fall_into_batches",),
        file="streams/ingest/replay_proofs.py",
        off=(("        passed.add(identity)\n", ""),),
    ),
    Rule(
        number=5,
        says="of two owners that replay one letter at the same moment one brings it in",
        tests=(f"{_ORIGINS}test_two_owners_that_replay_one_letter_at_the_same_moment_bring_it_in_once",),
        file="streams/ingest/replay_proofs.py",
        off=(("            if len(noted) == len(new):\n                break\n", "            break\n"),),
    ),
    Rule(
        number=5,
        says="a record whose headers the client cannot read counts without them",
        tests=(f"{_HEADERS}test_a_record_whose_header_name_is_not_utf_8_counts_and_is_noted",),
        file="runtime/headers.py",
        off=(("            if not _of_a_name(error):\n", "            if True:\n"),),
    ),
    Rule(
        number=5,
        says="headers are asked for from C, where CPython looks for the exception that the client leaves behind",
        tests=(f"{_HEADERS}test_a_thousand_records_whose_header_names_are_not_utf_8_end_no_process",),
        file="runtime/headers.py",
        off=(("map(Message.headers, messages)", "iter([message.headers() for message in messages])"),),
    ),
    Rule(
        number=5,
        says="`verify` asks for the proof by code of its own",
        tests=(f"{_HEADERS}test_verify_sees_what_was_dropped_for_a_header_that_proves_nothing",),
        file="driftline/audit/origin_proof.py",
        off=(
            ("            if hmac.compare_digest(expected.hexdigest().encode(), proof):\n", "            if True:\n"),
        ),
    ),
    Rule(
        number=5,
        says="`verify` takes a dropped replay for a duplicate only if its letter came in",
        tests=(f"{_HEADERS}test_verify_sees_a_letter_that_is_noted_as_come_in_by_a_record_that_does_not_count",),
        file="driftline/audit/stream_check.py",
        off=(("            self._brought_nothing_in(offsets[earlier].tolist())\n", ""),),
    ),
    Rule(
        number=6,
        says="event time is bounded by record time, not by the clock",
        tests=(f"{_DUPLICATES}test_event_time_is_bounded_by_record_time_and_not_by_the_clock",),
        file="streams/ingest/validation.py",
        off=(
            (
                "ahead = times - record_us",
                'ahead = times - __import__("time").time_ns() // 1000',
            ),
        ),
    ),
    Rule(
        number=7,
        says="new strings are committed in a transaction of their own",
        tests=(f"{_VOCABULARY}test_new_strings_are_there_for_others_while_the_batch_is_still_open",),
        file="storage/dictionary.py",
        off=(
            (
                "with self._engine.begin() as connection:\n            found",
                "with self._engine.connect() as connection:\n            found",
            ),
        ),
    ),
    Rule(
        number=7,
        says="new strings are allocated in sorted order",
        tests=(f"{_VOCABULARY}test_owners_with_the_same_new_strings_do_not_deadlock",),
        file="storage/dictionary.py",
        off=((" AS new(value) ORDER BY value", " AS new(value)"),),
    ),
    Rule(
        number=7,
        says="an id is cached only after its commit",
        tests=(f"{_VOCABULARY}test_no_id_is_remembered_whose_commit_failed",),
        file="storage/dictionary.py",
        off=(
            (
                "                found |= _select(connection, space, new)\n",
                "                found |= _select(connection, space, new)\n"
                "                self._ids[space].update(found)\n",
            ),
        ),
    ),
    Rule(
        number=8,
        says="a record that is no UTF-8 is a dead letter, wherever its bytes are damaged",
        tests=("tests/unit/contracts/test_codec.py::test_bytes_that_are_no_utf8_are_refused_wherever_they_stand",),
        file="contracts/codec.py",
        off=(("            value.decode()\n", ""),),
    ),
    Rule(
        number=8,
        says="dead letters are rows of the batch's transaction",
        tests=(f"{_DUPLICATES}test_a_refused_batch_leaves_no_letter_behind",),
        file="streams/ingest/batch_writer.py",
        off=(
            (
                "            dead_letters.append(self._connection, _letters(part, self._suppressed))",
                "            with self._vocabulary._engine.begin() as other:\n"
                "                dead_letters.append(other, _letters(part, self._suppressed))",
            ),
        ),
    ),
    Rule(
        number=8,
        says="a body is cut at a limit, with length and sha256 of the whole",
        tests=(f"{_RECORDS}test_a_letter_keeps_the_record_or_says_that_it_is_cut",),
        file="storage/log/dead_letters.py",
        off=(("value[:MAX_VALUE_BYTES]", "value"),),
    ),
    Rule(
        number=8,
        says="a cut body is not replayed",
        tests=(f"{_I}test_dlq.py::test_a_cut_body_is_refused_unless_the_whole_one_is_given",),
        file="driftline/dead_letter_replay.py",
        off=(("if letter.cut and not (", "if False and not ("),),
    ),
    Rule(
        number=8,
        says="a notice is repeated until it is acknowledged",
        tests=(f"{_RECORDS}test_a_notice_is_repeated_until_it_is_acknowledged",),
        file="streams/ingest/dead_letter_notices.py",
        off=(
            (
                "            self._under_way += 1\n",
                "            self._under_way += 1\n            self._arrived.append(letter)\n",
            ),
        ),
    ),
    Rule(
        number=9,
        says="items whose tombstones the topic has forgotten are ended",
        tests=(
            f"{_ITEMS}test_an_item_without_a_record_on_the_topic_is_ended_where_an_offset_is_missing",
            f"{_ITEMS}test_after_a_downtime_longer_than_tombstones_are_kept_deleted_items_are_deleted",
        ),
        file="streams/ingest/missed_tombstones.py",
        off=(("gone={item: at for item, at in alive.items() if item not in there},", "gone={},"),),
        kafka=True,
    ),
    Rule(
        number=9,
        says="a tombstone that goes between the look and its turn counts where it stood",
        tests=(f"{_ITEMS}test_a_tombstone_that_was_there_and_goes_before_it_is_read_counts_where_it_stood",),
        file="streams/ingest/missed_tombstones.py",
        off=(
            (
                "        ended = {offset: version for offset, version in ended.items() if offset not in read}\n",
                "        ended = {}\n",
            ),
        ),
    ),
    Rule(
        number=9,
        says="an item that lives again is not ended",
        tests=(f"{_ITEMS}test_an_item_that_lives_again_is_not_ended",),
        file="streams/ingest/missed_tombstones.py",
        off=(("            missed.gone.pop(item, None)  # it lives again\n", "            pass\n"),),
    ),
    Rule(
        number=10,
        says="a batch commits only under the suppression version it was judged with",
        tests=(
            f"{_DUPLICATES}test_a_batch_that_is_rolled_back_is_not_remembered",
            f"{_DUPLICATES}test_who_judged_by_fewer_erasures_than_there_are_moves_nothing",
        ),
        file="storage/log/offsets.py",
        off=(("AND suppression_version = :suppression", "AND CAST(:suppression AS bigint) IS NOT NULL"),),
    ),
    Rule(
        number=10,
        says="records of erased users are not accepted, on either side of a relation",
        tests=(f"{_DUPLICATES}test_records_of_an_erased_user_are_not_kept_on_either_side",),
        file="streams/ingest/batch_writer.py",
        off=(("user in erased or (other is not None and other in erased)", "user in erased"),),
    ),
    Rule(
        number=11,
        says="a history is read in one statement",
        tests=(f"{_I}test_storage_histories.py::test_a_history_is_whole_while_segments_are_being_compacted",),
        file="storage/sequences/history_reader.py",
        off=(("        result = reader.execute(_ROWS, values).pgresult", _TWO_STATEMENTS),),
    ),
)
"""Rules 1 to 11, as far as `ingest` and readers keep them."""
