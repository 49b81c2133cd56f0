"""Why a request got no answer, named for what the caller should do.

Trouble
├── Usage
│   ├── Invalid      the request is wrong: correct it                                    HTTP 400
│   └── Unauthorized it does not carry the token                                         HTTP 401
├── Transient
│   ├── Overloaded   too many requests are waiting: send fewer, or later                 HTTP 429
│   └── NotReady     no model yet, or Postgres is away: ask again                        HTTP 503
│       └── Stopping     this process ends: ask another one                              HTTP 503
├── Expired          its deadline passed before its turn came                            HTTP 504
└── Failed           a fault of ours; the log says more                                  HTTP 500
"""

from __future__ import annotations

from typing import Final, Literal

from runtime.lifecycle import ConfigurationError, DriftlineError, Transient

Outcome = Literal["invalid", "unauthorized", "overloaded", "not_ready", "expired", "failed"]


class Invalid(ConfigurationError):
    """The request cannot be understood; it will never be answered as it is."""

    outcome: Final = "invalid"


class Unauthorized(ConfigurationError):
    """The token is missing or another."""

    outcome: Final = "unauthorized"


class Overloaded(Transient):
    """As many requests are waiting as may wait."""

    outcome: Final = "overloaded"


class NotReady(Transient):
    """There is no model, or no Postgres, or no time left. The same request may be answered later."""

    outcome: Final = "not_ready"


class Stopping(NotReady):
    """The process ends; another may answer."""


class Expired(DriftlineError):
    """Nobody waits any more: the deadline that the request names has passed."""

    outcome: Final = "expired"


class Failed(DriftlineError):
    """The model's answer was no number, or something broke that should not."""

    outcome: Final = "failed"

    @classmethod
    def not_a_number(cls, where: str) -> Failed:
        """:param where: which snapshot."""
        todo = "take the snapshot out of service (`driftline rollback`) and look at its training"
        return cls("the model's prediction is not a number", where=where, hint=todo)


Refusal = Invalid | Unauthorized | Overloaded | NotReady | Expired | Failed

EXPIRED: Final = Expired(
    "the deadline passed before the request's turn came", where="$.deadline", hint="leave more time, or send fewer"
)
