"""Recordings become records: every row one, in the order of time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts import topics
from contracts.codec import Decoder, Malformed, Reason
from contracts.records import Label, Payment
from driftline.recorded import Columns, LateLabel, Recording, Reshape, Source, tables
from runtime.lifecycle import ConfigurationError
from runtime.produce import Outgoing

CLICKS = Columns(user="user", time="ts", type="kind")


def test_rows_come_by_time_then_row(tmp_path: Path) -> None:
    source = _parquet(tmp_path, {"user": [1, 2, 3, 4], "ts": [30, 10, 30, 20], "kind": list("abcd")}, CLICKS)
    found = [json.loads(record.value or b"") for record in Recording(source).records()]
    assert [event["type"] for event in found] == ["b", "d", "a", "c"]
    assert [event["event_id"] for event in found] == ["t:1", "t:3", "t:0", "t:2"]
    assert [event["user_id"] for event in found] == ["t:2", "t:4", "t:1", "t:3"]


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_sorted_file_is_streamed_to_the_same_records(
    shuffled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "BATCH_ROWS", 7)
    times = [n // 2 for n in range(40)]
    if shuffled:
        times = times[::-1]
    source = _parquet(tmp_path, {"user": list(range(40)), "ts": times, "kind": ["x"] * 40}, CLICKS)
    found = [int((record.key or b"")[2:]) for record in Recording(source).records()]
    assert found == sorted(range(40), key=lambda row: (times[row], row))
    assert [int((r.key or b"")[2:]) for r in Recording(source, limit=9).records()] == found[:9]


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        (pa.array([1_326_506_723.403]), "s"),
        (pa.array([1_326_506_723_403]), "ms"),
        (pa.array([1_326_506_723_403_000]), "us"),
        (pa.array(["1326506723.403"]), "s"),
        (pa.array(["2012-01-14T02:05:23.403Z"]), "s"),
        (pa.array(["2012-01-14T03:05:23.403+01:00"]), "s"),
        (pa.array(["2012-01-14 02:05:23.403"]), "s"),
        (pa.array([datetime(2012, 1, 14, 2, 5, 23, 403_000)], pa.timestamp("ms")), "s"),
        (pa.array([datetime(2012, 1, 14, 2, 5, 23, 403_000, UTC)], pa.timestamp("us", "Europe/Berlin")), "s"),
    ],
)
def test_times_are_read_to_the_microsecond_however_written(column: pa.Array, unit: Any, tmp_path: Path) -> None:
    columns = Columns(user="user", time="ts", time_unit=unit)
    (record,) = Recording(_parquet(tmp_path, {"user": [1], "ts": column}, columns)).records()
    assert _decoded(record).occurred_at == datetime(2012, 1, 14, 2, 5, 23, 403_000, UTC)
    assert record.at_ms == 1_326_506_723_403


def test_a_date_is_its_midnight(tmp_path: Path) -> None:
    columns = Columns(user="user", time="ts")
    (record,) = Recording(_parquet(tmp_path, {"user": [1], "ts": pa.array([date(2012, 1, 14)])}, columns)).records()
    assert _decoded(record).occurred_at == datetime(2012, 1, 14, tzinfo=UTC)


@pytest.mark.parametrize(
    ("column", "millionths"),
    [
        (pa.array([57.16], pa.float32()), 57_160_000),
        (pa.array([1234.56], pa.float32()), 1_234_560_000),
        (pa.array([0.1 + 0.2]), 300_000),
        (pa.array([8.0e-7]), 1),
        (pa.array([-12]), -12_000_000),
        (pa.array(["99999999999.999999"]), 99_999_999_999_999_999),
        (pa.array(["0.0010"]), 1_000),
    ],
)
def test_amounts_are_exact(column: pa.Array, millionths: int, tmp_path: Path) -> None:
    columns = Columns(user="user", time="ts", amount="amount", currency="=CZK", with_="shop")
    source = _parquet(tmp_path, {"user": [1], "ts": [5], "amount": column, "shop": [9]}, columns)
    (record,) = Recording(source).records()
    payment = _decoded(record)
    assert isinstance(payment, Payment)
    assert (payment.amount, payment.currency, payment.payee_id) == (millionths, "CZK", "t:9")


def test_rows_that_are_no_event_are_sent_as_what_they_are(tmp_path: Path) -> None:
    columns = Columns(user="user", time="ts", amount="amount", type="kind", currency="money")
    source = _parquet(
        tmp_path,
        {
            "user": [None, 2, 3, 4, 5, 6],
            "ts": [10.0, None, 12.0, 13.0, float("nan"), 15.0],
            "amount": ["1", "2", "x", "nan", "5", "6"],
            "kind": ["a", "b", "c", "d", "e", None],
            "money": ["EUR"] * 6,
        },
        columns,
    )
    recording = Recording(source)
    records = list(recording.records())
    assert (recording.rows, recording.malformed) == (6, 6)
    assert [record.at_ms for record in records] == [10_000, 10_000, 10_000, 12_000, 13_000, 15_000]
    assert {_refused(record) for record in records} == {Reason.MISSING_FIELD}
    assert {record.key for record in records} == {None, b"t:2", b"t:3", b"t:4", b"t:5", b"t:6"}
    assert b'"event_id":"t:0"' in (records[2].value or b"")


def test_a_relation_needs_its_counterpart(tmp_path: Path) -> None:
    columns = Columns(user="src", time="ts", with_="dst", type="=message")
    source = _parquet(tmp_path, {"src": [1, 2], "ts": [1, 2], "dst": [2, None]}, columns)
    good, bad = Recording(source).records()
    assert good.topic == topics.RELATIONAL
    assert _decoded(good).KIND == "relation"
    assert _refused(bad) is Reason.MISSING_FIELD


def test_labels_come_when_they_became_known(tmp_path: Path) -> None:
    columns = Columns(user="user", time="ts", amount="amount", id="tx")
    label = LateLabel(column="fraud", task="fraud", delay=timedelta(seconds=15))
    data = {"user": [1, 2, 3], "ts": [10, 20, 30], "amount": [1.0] * 3, "tx": [7, 8, 9], "fraud": [1, None, 0]}
    records = list(Recording(_parquet(tmp_path, data, columns, label=label)).records())
    assert [(record.topic, record.at_ms) for record in records] == [
        (topics.PAYMENT, 10_000),
        (topics.PAYMENT, 20_000),
        (topics.LABELS, 25_000),
        (topics.PAYMENT, 30_000),
        (topics.LABELS, 45_000),
    ]
    known = _decoded(records[2])
    assert isinstance(known, Label)
    assert (known.subject_event_id, known.value, known.user_id) == ("t:7", 1.0, "t:1")
    assert known.ref_time == datetime(1970, 1, 1, 0, 0, 10, tzinfo=UTC)
    assert known.known_at - known.ref_time == timedelta(seconds=15)


def test_a_csv_is_read_as_text_and_its_empty_fields_are_nothing(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("user,when,kind,thing\n007,2012-01-14T00:00:01Z,click,\n,2012-01-14T00:00:00Z,click,5\n")
    columns = Columns(user="user", time="when", type="kind", item="thing")
    first, second = Recording(Source(name="t", file=file, columns=columns)).records()
    assert _refused(first) is Reason.MISSING_FIELD
    assert _decoded(second).user_id == "t:007"
    assert _decoded(second).item_id is None


def test_type_values_may_be_given_names(tmp_path: Path) -> None:
    source = _parquet(tmp_path, {"user": [1, 2], "ts": [1, 2], "kind": [4, 5]}, CLICKS, type_names={"4": "Caucus"})
    assert [_decoded(record).type for record in Recording(source).records()] == ["Caucus", "5"]


@pytest.mark.parametrize("name", ["absent.parquet", "absent.csv", "short.csv", "wrong.parquet"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "short.csv").write_text("user,ts\n1,2\n")
    pq.write_table(pa.table({"user": [1]}), tmp_path / "wrong.parquet")
    source = Source(name="t", file=tmp_path / name, columns=CLICKS)
    with pytest.raises(ConfigurationError, match=f"{name}"):
        list(Recording(source).records())


def test_a_column_of_lists_is_refused_by_name(tmp_path: Path) -> None:
    source = _parquet(tmp_path, {"user": [[1]], "ts": [1], "kind": ["a"]}, CLICKS)
    with pytest.raises(ConfigurationError, match="column user holds no plain values"):
        list(Recording(source).records())


def test_a_time_beyond_the_calendar_is_no_time(tmp_path: Path) -> None:
    times = pa.array([2**62, 1], pa.timestamp("us"))
    source = _parquet(tmp_path, {"user": [1, 2], "ts": times, "kind": ["a", "b"]}, CLICKS)
    recording = Recording(source)
    assert [record.key for record in recording.records()] == [b"t:1", b"t:2"]
    assert recording.malformed == 1


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    data = {"user": pa.array([], pa.int64()), "ts": pa.array([], pa.int64()), "kind": pa.array([], pa.string())}
    assert list(Recording(_parquet(tmp_path, data, CLICKS)).records()) == []


def test_columns_that_are_made_out_of_others_are_read_like_any(tmp_path: Path) -> None:
    data = {"city": ["A", "B"], "user": [1, 1], "ts": [2, 1]}
    columns = Columns(user="citizen", time="ts")
    source = _parquet(tmp_path, data, columns, reshape=Reshape(reads=("city", "user", "ts"), make=_citizens))
    assert [record.key for record in Recording(source).records()] == [b"t:B:1", b"t:A:1"]


def _citizens(read: Iterator[pa.Table]) -> Iterator[pa.Table]:
    for table in read:
        names = [f"{row['city']}:{row['user']}" for row in table.to_pylist()]
        yield pa.table({"citizen": names, "ts": table["ts"]})


def test_what_stands_beside_the_rows_comes_before_rows_of_its_time(tmp_path: Path) -> None:
    asked: list[tuple[datetime, datetime]] = []

    def beside(first_at: datetime, last_at: datetime) -> Iterator[Outgoing]:
        asked.append((first_at, last_at))
        yield from (Outgoing(topics.ITEMS, b"i", None, at_ms) for at_ms in (10_000, 20_000, 35_000))

    data = {"user": [1, 2, 3], "ts": [10, 20, 30], "kind": list("abc")}
    source = _parquet(tmp_path, data, CLICKS, beside=beside)
    item, event = topics.ITEMS, topics.USER
    assert [record.topic for record in Recording(source).records()] == [item, event, item, event, event, item]
    assert [record.topic for record in Recording(source, limit=2).records()] == [item, event, item, event]
    assert asked[0] == (datetime(1970, 1, 1, 0, 0, 10, tzinfo=UTC), datetime(1970, 1, 1, 0, 0, 30, tzinfo=UTC))


def test_records_may_state_another_source_than_their_ids(tmp_path: Path) -> None:
    data = {"user": [1], "ts": [1], "kind": ["a"]}
    (record,) = Recording(_parquet(tmp_path, data, CLICKS, stated="t/guessed")).records()
    assert (_decoded(record).source, _decoded(record).event_id) == ("t/guessed", "t:0")


def _parquet(folder: Path, data: dict[str, Any], columns: Columns, **more: Any) -> Source:
    file = folder / "t.parquet"
    pq.write_table(pa.table(data), file, row_group_size=16)
    return Source(name="t", file=file, columns=columns, **more)


def _decoded(record: Outgoing) -> Any:
    return Decoder(topics.INPUTS[record.topic]).decode(record.value, record.key)


def _refused(record: Outgoing) -> Reason:
    with pytest.raises(Malformed) as caught:
        _decoded(record)
    return caught.value.reason
