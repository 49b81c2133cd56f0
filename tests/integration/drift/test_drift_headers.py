"""A header name that is not UTF-8 does not stop `drift`; the record counts like any other."""

from __future__ import annotations

import pytest

from contracts import topics as names
from contracts.codec import encode
from runtime.kafka import KafkaConfig
from tests.integration.drift.watching import Start, label
from tests.raw_records import CODECS, Raw, write_raw


@pytest.mark.parametrize("codec", CODECS)
def test_a_header_name_that_is_not_utf_8_costs_nothing(topics: KafkaConfig, start: Start, codec: str) -> None:
    records = [
        Raw(
            topic=topics.physical(names.LABELS),
            partition=number % 2,
            key=b"ann",
            value=encode(label(number, 1000)),
            at_ms=1_767_225_600_000,
            headers=[(b"ok", b"1"), (b"\xff\xfe", b"1"), (b"", None)] if 20 <= number < 30 else [],
        )
        for number in range(60)
    ]
    write_raw(topics.bootstrap, records, codec=codec)
    running = start(topics)
    running.until(lambda: running.records == 60)
    write_raw(topics.bootstrap, records[:30], codec=codec)  # and it goes on
    running.until(lambda: running.records == 90)
    told = running.end()
    assert (told["unreadable_headers"], told["unreadable"]) == (20, 0)
