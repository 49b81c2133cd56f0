"""What `drift` does with one topic: records into the subjects' state, alarms out. The state is a Faust table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import structlog

from contracts import topics
from contracts.codec import encode
from contracts.records import DriftAlarm, Label, Progress
from contracts.scoring import ScoreResult
from runtime import metrics
from runtime.kafka import KafkaConfig, TopicDescription
from streams.drift import drift_series, header_names
from streams.drift.drift_series import Signals, WatchedSubject
from streams.drift.session_lease import AppEnded, Lease
from streams.drift.subject_state import OpenBlock, Watch, added, closed, emptied

Value = TypeVar("Value")

_log = structlog.get_logger(__name__)


@dataclass
class DriftTotals:
    """What a run did."""

    records: int = 0
    repeated: int = 0
    unreadable: int = 0
    unreadable_headers: int = 0
    """Records with a header name that is not UTF-8: looked at like all others."""
    blocks: int = 0
    alarms: int = 0


class _Answer(msgspec.Struct):
    """Of a record on `scores.results`, what tells its kind."""

    outcome: str


def read(topic: str, value: bytes, partition: int, offset: int) -> Signals | None:
    """What a record says; None = nothing, as a refusal of `score` does.

    :raises msgspec.MsgspecError: it is not of the topic's schema, or no UTF-8, or nested too deep.
    """
    try:
        value.decode()  # msgspec passes over fields that it does not know, names and all
        return _signals(topic, value, partition, offset)
    except (UnicodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"{error}") from None


def _signals(topic: str, value: bytes, partition: int, offset: int) -> Signals | None:
    if topic == topics.PROGRESS:
        return drift_series.of_progress(msgspec.json.decode(value, type=Progress))
    if topic == topics.LABELS:
        return drift_series.of_label(msgspec.json.decode(value, type=Label), partition=partition, offset=offset)
    if msgspec.json.decode(value, type=_Answer).outcome != "answered":
        return None
    return drift_series.of_result(msgspec.json.decode(value, type=ScoreResult), partition=partition, offset=offset)


class Agent:
    """Reads one topic into its table."""

    def __init__(
        self,
        app: Any,
        source: TopicDescription,
        config: KafkaConfig,
        lease: Lease,
        gaps: set[tuple[int, int]],
        totals: DriftTotals,
    ) -> None:
        """:param gaps: (partition, offset) of progress where nothing stands, known from earlier stays."""
        raw = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
        self.trouble: Exception | None = None
        """What stopped it; Faust alone would pass the record over."""
        self._app = app
        self._source = source
        self._topic = source.topic
        self._physical = config.physical(source.topic)
        self._lease = lease
        self._gaps = gaps
        self._totals = totals
        self._table = app.Table(source.topic, partitions=source.partitions, key_type=bytes, value_type=bytes)
        self._alarms = app.topic(config.physical(topics.ALARMS), **raw)
        app.agent(app.topic(self._physical, **raw), name=f"drift-{source.topic}")(self.take_all)

    async def go_to_positions(self) -> None:
        """Reads on from where the table stands.

        Called while the partitions are paused. Faust lets them go before it seeks to the group's offsets, and until
        then would read from wherever those were: so the consumer is moved here, and the group's offsets too.
        """
        consumer = self._app.consumer
        places = {tp: self._position(tp.partition) for tp in consumer.assignment() if tp.topic == self._physical}
        if places:
            await consumer.seek_wait(places)
            # The public one commits what this process acknowledged: nothing yet.
            if not await consumer._commit(places):
                self.trouble = AppEnded("the group's offsets could not be set", where=self._topic)

    async def take_all(self, stream: Any) -> None:
        """The agent."""
        async for event in stream.events():
            if self.trouble is not None:
                continue
            try:
                await self._take(event.message)
            except Exception as error:
                self.trouble = error

    async def _take(self, message: Any) -> None:
        self._lease.renew()
        offset, partition = message.offset, message.partition
        due = self._position(partition)
        if offset < due:
            return
        if offset > due and self._topic == topics.PROGRESS and (gap := (partition, due)) not in self._gaps:
            # `train` leaves none; in the others every transaction does, and a record more or less is no matter.
            self._gaps.add(gap)
            raise AppEnded(f"offset {offset} came where {due} was due", where=f"{self._topic}/{partition}")
        metrics.drift_records.inc(1, self._topic)
        self._totals.records += 1
        if header_names.unreadable(message.headers):
            metrics.drift_unreadable_headers.inc(1, self._topic)
            self._totals.unreadable_headers += 1
        try:
            seen = read(self._topic, message.value or b"", partition, offset)
        except msgspec.MsgspecError as error:
            metrics.drift_unreadable.inc(1, self._topic)
            self._totals.unreadable += 1
            _log.warning("drift.unreadable", topic=self._topic, partition=partition, offset=offset, error=error)
        else:
            if seen is not None:
                await self._look(seen, partition, offset)
        self._set(self._place("position", str(partition)), offset + 1)

    async def _look(self, seen: Signals, partition: int, offset: int) -> None:
        place = self._place("open", str(seen.subject))
        before = self._get(place, OpenBlock)
        after = added(before, seen, offset)
        if after is before:
            metrics.drift_repeated.inc(1, self._topic)
            self._totals.repeated += 1
            return
        if after.full:
            await self._close(seen.subject, partition, after)
            after = emptied(after)
        metrics.drift_step.set(seen.step, seen.subject.name, str(seen.subject.branch))
        self._set(place, after)

    async def _close(self, subject: WatchedSubject, partition: int, block: OpenBlock) -> None:
        """Judges a full block; the state is written once the brokers have its alarms."""
        place, stream = self._place("watch", str(subject)), self._source.streams[partition]
        with metrics.drift_block_seconds.time():
            watch, alarms = closed(self._get(place, Watch), block, subject, stream=stream)
        self._totals.blocks += 1
        for alarm in alarms:
            await self._send(alarm)
        for name, series in watch.series.items():
            if series.inputs and (newest := series.inputs[-1]) is not None:
                metrics.drift_input.set(newest, subject.name, name)
        self._set(place, watch)

    async def _send(self, alarm: DriftAlarm) -> None:
        await (await self._alarms.send(key=alarm.id.encode(), value=encode(alarm)))
        metrics.drift_alarms.inc(1, alarm.subject, alarm.series, alarm.detector)
        self._totals.alarms += 1
        _log.warning("drift.alarm", alarm=alarm.id, z=alarm.z, since_step=alarm.after.first_step)

    # The table: one partition holds what came of one partition of the topic, in the order written.

    def _place(self, what: str, whose: str) -> str:
        return f"{what}/{self._source.topic_id}/{whose}"  # a recreated topic is another, read from its start

    def _position(self, partition: int) -> int:
        return self._get(self._place("position", str(partition)), int)

    def _get(self, key: str, kind: type[Value]) -> Value:
        found = self._table.get(key.encode())
        return kind() if found is None else msgspec.json.decode(found, type=kind)

    def _set(self, key: str, value: object) -> None:
        self._table[key.encode()] = msgspec.json.encode(value)
