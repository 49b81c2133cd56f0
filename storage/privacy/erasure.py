"""Erasing users: who they were is nowhere in the database any more (protocol, rules 10, 11 and 18).

Suppression comes first and in one transaction with what learners must do, so nothing new arrives; then log,
sequences of others, dead letters, the users' own sequences, and last their strings. Learners are told at both ends:
at the first they forget, at the last they read anew what was mended meanwhile. Each step is a transaction
or several, finds by itself what is left to do, and leaves what the next one needs: whoever was interrupted
calls again with the same users and it goes on. Postgres overwrites deleted bytes on its disk when it vacuums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from sqlalchemy import Connection, Engine, text

from storage.learning import signature_rows
from storage.privacy import row_erasure, suppression

Step = Literal["suppressed", "log", "others", "letters", "sequences", "strings"]
_OTHERS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What was taken out."""

    log_rows: int
    others: int
    """Other users in whose sequences the erased ones stood."""
    letters: int
    entries: int
    """Of the users' own sequences."""
    irreproducible: int
    """Snapshots that can no longer be rebuilt, earlier erasures' among them."""
    unknown: tuple[str, ...]
    """Users of whom neither this erasure nor an earlier one found anything; suppressed like the others."""


# Due before the next step: those journalled already ran, or will run, with what the log holds of them.
_ACTIONS = text("""
    INSERT INTO learner_action (learner, branch, step, action, user_hash)
    SELECT l.name, l.branch, l.next_step, 'erase', hash
    FROM (SELECT name, branch, next_step FROM learner ORDER BY name FOR UPDATE) AS l
    CROSS JOIN unnest(CAST(:hashes AS bytea[])) AS hash
    WHERE NOT EXISTS (SELECT FROM learner_action a
                      WHERE a.learner = l.name AND a.branch = l.branch AND a.user_hash = hash)
""")

# Others' sequences were mended while these were learnt; and what is in memory of them may be older.
_MENDED_MEANWHILE = text("""
    UPDATE snapshot s SET irreproducible = true
    FROM learner_action a
    WHERE a.learner = s.learner AND a.branch = s.branch AND a.user_hash = ANY(CAST(:hashes AS bytea[]))
      AND s.step > a.step AND NOT s.irreproducible
""")

_ACTIONS_AGAIN = text("""
    INSERT INTO learner_action (learner, branch, step, action, user_hash)
    SELECT l.name, l.branch, l.next_step, 'erase', hash
    FROM (SELECT name, branch, next_step FROM learner ORDER BY name FOR UPDATE) AS l
    CROSS JOIN unnest(CAST(:hashes AS bytea[])) AS hash
    ON CONFLICT (learner, branch, step, user_hash) DO NOTHING
""")

_IRREPRODUCIBLE = text("SELECT count(*) FROM snapshot WHERE irreproducible")

# What the planner remembers of columns are values of theirs.
_STATISTICS = text("ANALYZE vocabulary, user_segment, dead_letter, log_segment")


def erase(engine: Engine, users: Sequence[str], *, done: Callable[[Step], None] = lambda step: None) -> Erased:
    """Erases users; safe to repeat, and beside everything else that runs.

    :param done: told after each step (fault injection, progress).
    :raises sqlalchemy.exc.DBAPIError: Postgres is away, or a batch in flight does not end: call it again.
    """
    users = sorted(set(users))
    with engine.begin() as connection:
        hashes = suppression.suppress(connection, users)
        connection.execute(_ACTIONS, {"hashes": hashes})
    done("suppressed")
    log_rows = _from_log(engine, users)
    done("log")
    with engine.begin() as connection:
        own, payees = row_erasure.ids_of(connection, users)
        others = row_erasure.others_of(connection, own, payees)
    for portion in _portions(others):
        with engine.begin() as connection:
            row_erasure.from_sequences_of_others(connection, portion, [*own, *payees])
            signature_rows.erase(connection, portion)  # they are built anew from what is left
    done("others")
    with engine.begin() as connection:
        letters = row_erasure.from_letters(connection, users)
    done("letters")
    entries = 0
    for portion in _portions(own):
        with engine.begin() as connection:
            entries += row_erasure.sequences_of(connection, portion)
    done("sequences")
    with engine.begin() as connection:
        if own or payees:  # else an earlier call came this far
            suppression.alone(connection)
            # Learners before snapshots, as a `train` that publishes takes them: neither waits for the other for ever.
            connection.execute(_ACTIONS_AGAIN, {"hashes": hashes})
            connection.execute(_MENDED_MEANWHILE, {"hashes": hashes})
        row_erasure.strings(connection, own, payees)
        irreproducible = _count(connection)
        unknown = suppression.unknown(connection, users)
    with engine.begin() as connection:
        connection.execute(_STATISTICS)
    done("strings")
    return Erased(
        log_rows=log_rows,
        others=len(others),
        letters=letters,
        entries=entries,
        irreproducible=irreproducible,
        unknown=tuple(unknown),
    )


def _from_log(engine: Engine, users: Sequence[str]) -> int:
    with engine.begin() as connection:
        places = row_erasure.segments(connection)
    rows = 0
    for place in places:
        with engine.begin() as connection:
            rows += row_erasure.from_segment(connection, place, users)
    return rows


def _count(connection: Connection) -> int:
    return int(connection.scalar(_IRREPRODUCIBLE) or 0)


def _portions(ids: Sequence[int]) -> Iterator[list[int]]:
    rest = iter(ids)
    while portion := list(islice(rest, _OTHERS_AT_ONCE)):
        yield portion
