"""Why a request got no answer, named for what the caller should do.

Trouble
├── Usage
│   └── Invalid      the request is wrong: correct it                                    HTTP 400
├── Transient
│   ├── Overloaded   too many requests are waiting: send fewer, or later                 HTTP 429
│   └── NotReady     no model yet, or Postgres is away: ask again                        HTTP 503
│       └── Stopping     this process ends: ask another one                              HTTP 503
└── Failed           a fault of ours; the log says more                                  HTTP 500
"""

from __future__ import annotations

from typing import Literal

from runtime.lifecycle import Transient, Trouble, Usage

Outcome = Literal["invalid", "overloaded", "not_ready", "failed"]


class Invalid(Usage):
    """The request cannot be understood; it will never be answered as it is."""

    outcome: Outcome = "invalid"


class Overloaded(Transient):
    """As many requests are waiting as may wait."""

    outcome: Outcome = "overloaded"


class NotReady(Transient):
    """There is no model, or no Postgres, or no time left. The same request may be answered later."""

    outcome: Outcome = "not_ready"


class Stopping(NotReady):
    """The process ends; another may answer."""


class Failed(Trouble):
    """The model's answer was no number, or something broke that should not."""

    outcome: Outcome = "failed"


Refusal = Invalid | Overloaded | NotReady | Failed
