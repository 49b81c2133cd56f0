"""Somebody who asks `score` all the time, over Kafka, and wants every question answered."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence

import msgspec

from contracts import topics
from contracts.codec import encode
from contracts.scoring import ScoreCall, ScoreFailure, ScoreResult
from runtime import kafka
from runtime.kafka import KafkaConfig
from tests.chaos.reading import Tail

EVERY_S = 0.1


class Asker:
    """Asks from a thread of its own, until told to stop."""

    def __init__(self, config: KafkaConfig, users: Sequence[str], seed: int) -> None:
        self._config, self._users = config, users
        self._rng = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="asking")
        self._answers = Tail(config, topics.RESULTS)
        self.asked: set[str] = set()
        self.answered: Counter[str] = Counter()
        """Question -> how often."""
        self.refused: list[str] = []
        self.undelivered = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No more questions; all that were asked have reached Kafka."""
        self._stop.set()
        self._thread.join()

    def listen(self) -> bool:
        """Takes in answers; True: no question is open."""
        for _, _, value in self._answers.take():
            found = msgspec.json.decode(value, type=ScoreResult | ScoreFailure)
            if isinstance(found, ScoreFailure):
                self.refused.append(f"{found.request_id}: {found.reason}, {found.message}")
            elif found.request_id is not None:
                self.answered[found.request_id] += 1
        return self.answered.keys() >= self.asked

    def close(self) -> None:
        self.stop()
        self._answers.close()

    def trouble(self) -> str:
        """What is wrong with the answers; "" = nothing."""
        lost, foreign = self.asked - self.answered.keys(), self.answered.keys() - self.asked
        wrong = {
            "score requests lost": len(lost),
            "answers to what nobody asked": len(foreign),
            f"refused, as {self.refused[:1]}": len(self.refused),
            "questions not delivered": self.undelivered,
        }
        return ", ".join(f"{count} {what}" for what, count in wrong.items() if count)

    @property
    def repeated(self) -> int:
        """Questions answered more than once: what a kill between answer and position leads to."""
        return sum(count > 1 for count in self.answered.values())

    def _ask(self) -> None:
        producer = kafka.producer(self._config)
        topic = self._config.physical(topics.REQUESTS)
        while not self._stop.wait(EVERY_S):
            call = ScoreCall(user_id=self._rng.choice(self._users), request_id=f"question-{len(self.asked)}")
            producer.produce(topic, key=call.user_id, value=encode(call))
            self.asked.add(str(call.request_id))
            producer.poll(0)
        self.undelivered = producer.flush(100)
