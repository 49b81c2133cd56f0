"""What becomes of records: good, bad, repeated, late."""

from __future__ import annotations

from tests.integration.feeding import Sender, event, identity, ingest_once, item, label, payment, relation, taken

from runtime.kafka import KafkaConfig


def test_each_kind_of_record_stands_where_it_belongs(database: str, tansu_topics: KafkaConfig) -> None:
    sender = Sender(tansu_topics)
    records = [event("e1"), payment("p1"), relation("r1", "ann", "bob"), label("l1")]
    sender.send(*records, item("i1", "a title"))
    totals = ingest_once(database, tansu_topics)
    assert (totals.read, totals.accepted) == (5, 5)
    assert taken(database).identities == {identity(record) for record in records}
