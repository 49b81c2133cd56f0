"""Where the topics end: when a bounded run of `train` began, and now, as the broker says."""

from __future__ import annotations

import structlog
from sqlalchemy import Connection

from contracts import topics
from runtime import kafka
from runtime.kafka import KafkaConfig
from runtime.lifecycle import DriftlineError
from storage.log import offsets
from storage.log.offsets import Cursor

ANSWER_S = 2.0
"""So long an answer of the broker is waited for."""

_log = structlog.get_logger(__name__)


class Ends:
    """Where the topics ended when a bounded run began."""

    def __init__(self, config: KafkaConfig, *, labels: bool) -> None:
        """
        :param labels: of the topic of labels too, not of those of events alone.
        """
        topics_here = kafka.describe(config, [*topics.EVENTS, *((topics.LABELS,) if labels else ())])
        client = kafka.consumer(config, group="driftline-ends")
        try:
            self._highs = {
                (topic.topic_id, topic.topic, partition): kafka.low_high(
                    client, config.physical(topic.topic), partition
                )[1]
                for topic in topics_here.values()
                for partition in range(topic.partitions)
            }
        finally:
            client.close()
        self._taken_in: Cursor | None = None

    def by_stream(self, connection: Connection) -> Cursor:
        """Ends of the streams that `ingest` has met so far.

        A broker may report an end too low (Tansu does): what was taken in at the start counts too.
        """
        rows = [row for row in offsets.streams(connection) if not row.retired]  # those end where they are
        if self._taken_in is None:
            self._taken_in = {row.stream_id: row.next_offset for row in rows}
        ends = {
            row.stream_id: max(high, self._taken_in.get(row.stream_id, 0))
            for row in rows
            if (high := self._highs.get((row.stream.topic_id, row.stream.topic, row.stream.partition))) is not None
        }
        if len(ends) < len(self._highs):
            return {}  # streams without a row yet: nothing is finished
        return ends


class LatestEnds:
    """Where the topics of payments and labels end now."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._client = kafka.admin(config)

    def ask(self) -> dict[tuple[str, str, int], int] | None:
        """(topic id, topic, partition) -> end; None: no answer, so nobody knows what is on its way."""
        try:
            return kafka.latest_offsets(
                self._config, [topics.PAYMENT, topics.LABELS], client=self._client, timeout_s=ANSWER_S
            )
        except DriftlineError as error:
            _log.warning("train.ends_unknown", error=str(error))
            return None
