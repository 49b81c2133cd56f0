"""The search for what an erasure left finds bytes wherever they stand, and nothing where they do not."""

from __future__ import annotations

from pathlib import Path

from contracts import topics
from driftline.audit import byte_traces
from driftline.audit.byte_traces import traces
from storage.privacy import erasure
from tests.integration.feeding import engine_of, event, label
from tests.integration.owning import MakeOwner, message

GONE = "ann-4711"


def test_names_are_found_in_tables_in_the_packed_log_and_as_bytes(
    database: str, owner: MakeOwner, tmp_path: Path
) -> None:
    one = owner((topics.USER, 0), (topics.LABELS, 0))
    one.write_events(event("e1", GONE, 1), event("e2", "bob", 2))
    one.write_events(label("l1", GONE, 1), topic=topics.LABELS)
    broken = message(topics.USER, one.claims[topics.USER, 0].next_offset, key=GONE.encode(), value=b"{")
    one.write({(topics.USER, 0): [broken]})
    found = traces(database, tmp_path, GONE)
    assert {place.partition(".")[0] for place in found} == {"log_segment", "vocabulary", "dead_letter"}
    assert found["log_segment.rows"] == 2
    erasure.erase(engine_of(database), [GONE])
    assert traces(database, tmp_path, GONE) == {}


def test_a_file_that_holds_the_name_across_two_pieces_is_found(database: str, tmp_path: Path) -> None:
    weights, other = tmp_path / "snapshots" / "weights", tmp_path / "other"
    weights.parent.mkdir()
    weights.write_bytes(bytes(byte_traces.AT_ONCE - 3) + GONE.encode() + bytes(100))
    other.write_bytes(bytes(100))
    assert traces(database, tmp_path, GONE) == {"snapshots/weights": 1}
