"""A record's headers, as confluent-kafka can be asked for them without harm.

Kafka keeps any bytes as a header's name. `Message.headers()` of confluent-kafka 2.16 decodes names; where one is not
UTF-8 it returns a list with nothing in that name's place *and* leaves an exception behind. CPython notices that in
calls made from C, and raises SystemError. It does not in `message.headers()` once that line has run a few times and was
specialised: then whoever unpacks the list ends the process (segmentation fault). So the method is called from C here,
and must be called once a message: the second call gives the half made list, without any error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from confluent_kafka import Message

Headers = list[tuple[str, str | bytes | None]]
UNREADABLE: Final[Headers] = [("", None)]
"""Stands for the headers of a message that has a name which is not UTF-8; compare by identity."""


def headers_of(messages: Sequence[Message]) -> list[Headers | None]:
    """The headers of each of some messages that were not asked for them before; None: it has none."""
    found: list[Headers | None] = []
    asked: Any = map(Message.headers, messages)  # calls from C, and goes on behind the message that raised
    while True:
        try:
            found.extend(asked)
            return found
        except (SystemError, UnicodeDecodeError) as error:
            if not _of_a_name(error):
                raise
            found.append(UNREADABLE)


def _of_a_name(error: BaseException | None) -> bool:
    """Several such names in one record wrap each other's errors."""
    while error is not None and not isinstance(error, UnicodeDecodeError):
        error = error.__cause__ or error.__context__
    return error is not None
