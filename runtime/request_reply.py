"""Requests from one topic, answers to another, at least once.

The position of the requests lives in the consumer group and moves only after the answers are acknowledged. What a
killed process answered without moving it is answered again, under the same ids: a request's place (topic id,
partition, offset) is all that names it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from runtime import kafka
from runtime.failpoints import Failpoint, failpoint
from runtime.kafka import BrokerAway, KafkaConfig

ACKNOWLEDGE_S = 30.0
"""Seconds Kafka has to acknowledge the answers of one batch."""
_ANSWERS = {"linger.ms": 2, "message.timeout.ms": int(ACKNOWLEDGE_S * 1000)}
# A new group begins at the oldest request there is, and so does one whose position retention has passed.
_REQUESTS = {"auto.offset.reset": "earliest"}


class Incoming(NamedTuple):
    """A request as it came."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


class Exchange:
    """One stay in the consumer group of the requests. One thread uses it."""

    def __init__(
        self,
        config: KafkaConfig,
        *,
        requests: str,
        answers: str,
        group: str,
        session_timeout_s: float,
        passage: Failpoint,
    ) -> None:
        """
        :param requests: logical topic; :param answers: another.
        :param passage: passed between the acknowledgement of answers and the commit of the position.
        :raises TopicMissing: one of them does not exist. :raises BrokerAway, BrokerRefused: see `runtime.kafka`.
        """
        self._topic_id = kafka.describe(config, [requests, answers])[requests].topic_id
        self._requests, self._answers = config.physical(requests), config.physical(answers)
        self._where = f"Kafka at {config.bootstrap}"
        self._passage: Failpoint = passage
        self._early: list[Incoming] = []
        self._refused: list[str] = []
        self._producer = kafka.producer(config, extra=_ANSWERS)
        self._consumer = kafka.consumer(
            config, group=group, topics=[requests], session_timeout_s=session_timeout_s, extra=_REQUESTS
        )

    def id_of(self, request: Incoming) -> str:
        """Its place, the same whenever it is read."""
        return f"{self._topic_id}/{request.partition}/{request.offset}"

    def take(self, limit: int, timeout_s: float) -> list[Incoming]:
        """At most `limit` requests; [] when none came in time.

        :raises BrokerAway: the subscription broke; come back with a new exchange.
        """
        messages = self._consumer.consume(limit, 0.0 if self._early else timeout_s)
        taken, self._early = [*self._early, *map(self._read, messages)], []
        return taken

    def stay(self) -> None:
        """Tells the group that we are there while a batch takes long; without it partitions are given away."""
        paused = self._consumer.assignment()
        self._consumer.pause(paused)
        message = self._consumer.poll(0.0)
        if message is not None:  # of a partition assigned this very moment
            self._early.append(self._read(message))
        # Those too that were taken away this very moment: given back, they would be paused still.
        self._consumer.resume(paused)

    def answer(self, key: bytes | None, value: bytes) -> None:
        """Sends an answer; `settle` waits for it."""
        while True:
            try:
                self._producer.produce(self._answers, value, key, -1, self._delivered)
                return
            except BufferError:
                self._producer.poll(0.05)
            except KafkaException as error:
                raise BrokerAway(f"answer not sent: {error.args[0].str()}", where=self._where) from error

    def settle(self, taken: Iterable[Incoming]) -> None:
        """Waits until all answers are acknowledged, then moves the position behind the requests taken.

        :raises BrokerAway: some were not; the position stays, and the requests will be read again.
        """
        left = self._producer.flush(ACKNOWLEDGE_S)
        if left or self._refused:
            raise BrokerAway(
                f"answers not acknowledged: {self._refused[0] if self._refused else f'{left} still on their way'}",
                where=self._where,
                hint="is it running? the requests are read again",
            )
        failpoint(self._passage)
        ends = {request.partition: request.offset + 1 for request in sorted(taken, key=lambda one: one.offset)}
        try:
            places = [TopicPartition(self._requests, partition, end) for partition, end in ends.items()]
            self._consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            raise BrokerAway(f"position not kept: {error.args[0].str()}", where=self._where) from error

    def close(self) -> None:
        """Leaves the group; answers not yet acknowledged are dropped, their requests will be read again."""
        self._producer.purge()
        self._producer.flush(1.0)
        self._consumer.close()

    def _read(self, message: Message) -> Incoming:
        error = message.error()
        partition, offset = message.partition(), message.offset()
        if error is not None or partition is None or offset is None:
            raise BrokerAway(f"no requests: {'' if error is None else error.str()}", where=self._where)
        key, value = message.key(), message.value()
        return Incoming(partition, offset, _as_bytes(key), _as_bytes(value))

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._refused.append(error.str())


def _as_bytes(content: str | bytes | None) -> bytes | None:
    return content.encode() if isinstance(content, str) else content
