"""A record's headers, as confluent-kafka can be asked for them without harm.

Kafka keeps any bytes as a header's name. `Message.headers()` of confluent-kafka 2.16 decodes names; where one is not
UTF-8 it returns a list with nothing in that name's place *and* leaves an exception behind. CPython notices that in
calls made from C, and raises SystemError. It does not in `message.headers()` once that line has run a few times and was
specialised: then whoever unpacks the list ends the process (segmentation fault). So the method is called from C here,
and must be called once a message: the second call gives the half made list, without any error.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller

from confluent_kafka import Message

Headers = list[tuple[str, str | bytes | None]]

read_headers: Callable[[Message], Headers | None] = methodcaller("headers")
"""The headers of a message that was not asked before.

:raises SystemError, UnicodeDecodeError: see `check_unreadable`.
"""


def check_unreadable(error: SystemError | UnicodeDecodeError) -> None:
    """Passes if `read_headers` met a name that is not UTF-8; the record itself is as good as any.

    :raises SystemError: something else happened.
    """
    reason: BaseException | None = error
    while reason is not None and not isinstance(reason, UnicodeDecodeError):
        reason = reason.__cause__ or reason.__context__  # several such names in one record wrap each other's errors
    if reason is None:
        raise error
