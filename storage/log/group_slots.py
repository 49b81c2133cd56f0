"""Which of its group's places a process of `ingest` takes, so that a restarted one takes the place of the dead one.

Kafka knows a member by its `group.instance.id`: one that comes back under the id of a member that died gets its
partitions at once, without waiting for the session timeout. Two that live under one id throw each other out. So the
id is that of a numbered slot, and who has it is decided by a lock that a session of Postgres holds: it is free as soon
as the process is dead, on whatever machine the next one starts, and no two sessions hold it together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, count

from sqlalchemy import Connection, text

_SPACE = 0x64726C73
"""First key of the advisory locks; the second is made of group and number."""

_TAKE = text("SELECT pg_try_advisory_lock(:space, hashtext(:name))")

# Other installations may use a group of this name on the same Kafka: the id says whose slot it is.
_DATABASE = text("""
    SELECT to_hex(system_identifier) || '-' || oid FROM pg_control_system(), pg_database
    WHERE datname = current_database()
""")


@dataclass(frozen=True)
class Slot:
    """A place in the consumer group that this process alone has, as long as its session lives."""

    number: int
    name: str
    """Of this slot alone, whatever else uses the same Kafka."""

    def instance_id(self, topics: Iterable[tuple[str, int]]) -> str:
        """Kafka's `group.instance.id`: another one as soon as a topic is another or has more partitions.

        Whoever comes back under an id gets what the group had assigned to it, without a look at the topics: partitions
        that were added meanwhile would belong to nobody.

        :param topics: id and number of partitions of each topic.
        """
        layout = blake2b(repr(sorted(topics)).encode(), digest_size=4).hexdigest()
        return f"{self.name}-{layout}"


def take(connection: Connection, group: str, *, prefer: int = 0) -> Slot:
    """The slot `prefer` if it is free, else the lowest free one; held until the session ends.

    :param prefer: what the process held before: the group may still know it there.
    """
    database = connection.execute(_DATABASE).scalar_one()
    number = next(n for n in chain([prefer], count()) if _try(connection, group, n))
    return Slot(number, f"driftline-{database}-{number}")


def _try(connection: Connection, group: str, number: int) -> bool:
    taken: bool = connection.execute(_TAKE, {"space": _SPACE, "name": f"{group} {number}"}).scalar_one()
    return taken
