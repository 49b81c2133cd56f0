"""What may be wrong with Postgres, as its callers tell it apart.

Unavailable    out of reach, or the outcome of a commit is unknown: drop memory, come again later
└── Denied     it answers and lets this client not in: a start ends with exit code 2, a running process waits
Unfit          it answers, but the promise cannot stand on it: a person decides, exit code 3
└── TooOld     its version
BadAddress     the URL cannot be read: exit code 2
"""

from __future__ import annotations


class Unavailable(ConnectionError):
    """Postgres is out of reach, or the outcome of a commit is unknown: drop memory, come again later."""


class Denied(Unavailable):
    """The server, or the pooler before it, lets this client not in: credentials, database, certificate.

    Whoever runs already waits (a password is being changed, a failover is under way); a start ends with it.
    """


class Unfit(RuntimeError):
    """Driftline's promise cannot be had from what answers: its encoding, a pooler's mode, lacking rights, damage."""

    def __init__(self, what: str, *, hint: str) -> None:
        self.what, self.hint = what, hint
        super().__init__(f"{what}; {hint}")


class TooOld(Unfit):
    """The server is older than Driftline's promise needs."""


class BadAddress(ValueError):
    """The URL cannot be read. Nothing of it is repeated: a password may stand anywhere in it."""

    def __init__(self, what: str, *, hint: str) -> None:
        self.what, self.hint = what, hint
        super().__init__(f"{what}; {hint}")
