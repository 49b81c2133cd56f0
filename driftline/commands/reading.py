"""`status`, `user` and `item`: what is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from contracts import topics
from driftline.asof import AsOf, parse
from driftline.cli_context import Session
from driftline.commands import AsJson, example, session
from driftline.commands.offsets import ranges
from driftline.output import age, as_json, note, say, table, time
from runtime import kafka
from runtime.lifecycle import ConfigurationError, DriftlineError
from storage import items, overview
from storage.freshness import staleness_s
from storage.learning import label_resolutions
from storage.log import dead_letters
from storage.log import offsets as stored
from storage.log.event_log import time_of
from storage.log.offsets import StreamRow
from storage.sequences import sequence_retention, user_sequences

SHOWN_CHARS = 60
"""Of a text, in the table; --json tells all."""


def add_to(app: typer.Typer) -> None:
    """The verbs of this file."""
    app.command("status", epilog=example("driftline status", "driftline status --json"))(status)
    app.command(
        "user",
        epilog=example(
            "driftline user stackoverflow:7",
            "driftline user stackoverflow:7 --as-of 2013-06-01T00:00:00Z",
            "driftline user stackoverflow:7 --as-of 1:345,2:77@2013-06-01T00:00:00Z --json",
        ),
    )(user)
    app.command("item", epilog=example("driftline item book-1", "driftline item book-1 --as-of 1:345,2:77 --json"))(
        item
    )


def status(context: typer.Context, json: AsJson = False) -> None:
    """Print how far everything is.

    Streams and their lag, what became of the records, dead letters, learners and their snapshots.
    """
    call = session(context)
    with call.reading() as connection:
        rows = [row for row in stored.streams(connection) if not row.retired]
        owners, taken = overview.owners(connection), overview.taken(connection)
        letters, learners = dead_letters.counts(connection), overview.learners(connection)
        outcomes = overview.outcomes(connection)
        stale_s = staleness_s(connection, {row.stream_id: row.next_offset for row in rows})
    ends, trouble = _ends(call, rows)
    streams: list[dict[str, Any]] = []
    for row in rows:
        end, owner = ends.get((row.stream.topic, row.stream.partition)), owners.get(row.stream_id)
        streams.append(
            {
                "stream": row.stream_id,
                "topic": row.stream.topic,
                "partition": row.stream.partition,
                "next_offset": row.next_offset,
                "end": end,
                "lag": None if end is None else max(0, end - row.next_offset),
                "owner": owner and asdict(owner),
            }
        )
    totals = _totals(rows, taken)
    if json:
        as_json(
            {
                "streams": streams,
                "topics": totals,
                "staleness_seconds": stale_s,
                "dead_letters": letters,
                "learners": learners,
                "labels": outcomes,
                "kafka": trouble or "answers",
            }
        )
        return
    if trouble:
        note(f"Kafka: {trouble}")
    table(
        ["topic", "partition", "next offset", "end", "lag", "owner"],
        [(s["topic"], s["partition"], s["next_offset"], s["end"], s["lag"], _owner(s["owner"])) for s in streams],
    )
    say()
    names = ("read", "accepted", "duplicates", "dead", "suppressed")
    table(["topic", *names], [(topic, *(counts[name] for name in names)) for topic, counts in totals.items()])
    say(f"\nnewest batch: {age(stale_s)} old" if stale_s is not None else "\nnothing has come in yet")
    if letters:
        say("dead letters: " + ", ".join(f"{reason} {count:,}" for reason, count in letters.items()))
    for learner in learners:
        kept = (
            f"snapshot {learner.snapshot}, {age(learner.snapshot_age_s)} old" if learner.snapshot else "no snapshot yet"
        )
        say(f"learner {learner.learner} {learner.version}: {learner.next_step:,} steps journalled; {kept}")
    for one in outcomes:
        counted = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in one.labels.items() if count)
        idle = f"; idle when silences ended last: {', '.join(one.idle)}" if one.idle else ""
        say(f"labels of {one.task} to {one.learner}: {counted or 'none'}; {one.open:,} payments wait{idle}")
        if one.unlabelled and one.open:
            note(label_resolutions.none_read(one.task, one.open))


def user(
    context: typer.Context,
    user_id: Annotated[str, typer.Argument(metavar="ID", help="The user's id, as producers give it.")],
    as_of: Annotated[
        str | None,
        typer.Option(
            metavar="CURSOR|TIME",
            help="As it was: below a cursor (1:345,2:77), strictly before an event time, or CURSOR@TIME.",
        ),
    ] = None,
    last: Annotated[int, typer.Option(min=1, metavar="N", help="At most the newest so many events.")] = 100,
    json: AsJson = False,
) -> None:
    """Print a user's sequence, as it is or was.

    The cursor (and time) it is as of is printed with it: asked again with these, the answer stays the same.
    """
    call = session(context)
    with call.reading() as connection:
        asked = parse(as_of, stored.watermark(connection))
        ask = user_sequences.HistoryAsk(user=user_id, before=asked.before, last_n=last)
        (events,) = user_sequences.histories(connection, [ask], asked.cursor)
        missing = sequence_retention.missing(connection, user_id)
    if json:
        shown = [{**event._asdict(), "at": time_of(event.at)} for event in events]
        as_json({"user_id": user_id, "as_of": str(asked), "events": shown, "removed": missing and asdict(missing)})
        return
    table(
        ["time", "type", "item", "amount", "with", "kind", "event", "stream", "offset"],
        [
            (
                time_of(event.at),
                event.type,
                event.item,
                None if event.amount is None else f"{event.amount / 1e6:.2f} {event.currency}",
                event.other,
                _KINDS[event.kind],
                event.event_id,
                str(event.stream_id),
                event.offset,
            )
            for event in events
        ],
    )
    say(f"\n{len(events):,} events{' (the newest; --last N shows more)' if len(events) == last else ''}")
    say(f"as of {asked}")
    if missing:
        note(f"retention removed {missing.events:,} older events of this user, the newest of {time(missing.last_at)}")


def item(
    context: typer.Context,
    item_id: Annotated[str, typer.Argument(metavar="ID", help="The item's id, as producers give it.")],
    as_of: Annotated[str | None, typer.Option(metavar="CURSOR", help="As it was below a cursor (1:345,2:77).")] = None,
    last: Annotated[int, typer.Option(min=1, metavar="N", help="At most the newest so many versions.")] = 100,
    json: AsJson = False,
) -> None:
    """Print what an item is or was: its versions, the one that counts first, deletions among them.

    The cursor it is as of is printed with it: asked again with that, the answer stays the same.
    """
    call = session(context)
    with call.reading() as connection:
        asked = parse(as_of, stored.watermark(connection))
        if asked != AsOf(asked.cursor):
            raise ConfigurationError(
                "an item's versions are told apart by offsets, not by time", where="--as-of", hint="name a cursor"
            )
        versions = items.versions(connection, item_id, asked.cursor, limit=last)
    if json:
        as_json({"item_id": item_id, "as_of": str(asked), "versions": versions})
        return
    table(
        ["record time", "title", "text", "attributes", "source", "stream", "offset"],
        [(version.record_at, *_described(version), str(version.stream_id), version.offset) for version in versions],
    )
    say(f"\n{len(versions):,} versions{' (the newest; --last N shows more)' if len(versions) == last else ''}")
    say(f"as of {asked}")


def _described(version: items.ItemVersion) -> tuple[object, ...]:
    """Title, the text's beginning, attributes, source."""
    if version.payload is None:
        return ("(deleted)", None, None, None)
    text, attributes = version.payload["text"], version.payload["attributes"]
    named = ", ".join(f"{name}: {value}" for name, value in attributes.items())
    return (
        version.payload["title"],
        text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}... ({len(text):,} characters)",
        named or None,
        version.payload["source"],
    )


_KINDS = {
    user_sequences.USER: "event",
    user_sequences.PAYMENT: "payment",
    user_sequences.RELATION_ACTOR: "to",
    user_sequences.RELATION_COUNTERPART: "from",
}


def _ends(call: Session, rows: list[StreamRow]) -> tuple[dict[tuple[str, int], int], str]:
    """Where the partitions end; and what is wrong, if Kafka does not say."""
    try:
        described = kafka.describe(call.kafka, list(topics.INPUTS))
        with ranges(call) as range_of:
            places = [(row.stream.topic, row.stream.partition) for row in rows]
            ends = {place: range_of(*place)[1] for place in places if place[1] < described[place[0]].partitions}
        for row in rows:
            place = (row.stream.topic, row.stream.partition)
            if place in ends and not described[place[0]].trusts_high_watermark:
                ends[place] = max(ends[place], row.next_offset)  # the broker tells too few
    except DriftlineError as trouble:
        return {}, str(trouble)
    foreign = {
        row.stream.topic
        for row in rows
        if (now := described[row.stream.topic]).topic_id != row.stream.topic_id
        or now.cluster_id != row.stream.cluster_id
    }
    if foreign:
        kept = {place: end for place, end in ends.items() if place[0] not in foreign}
        return kept, f"{', '.join(sorted(foreign))} is not the topic that was read: `driftline offsets rebind`"
    return ends, ""


def _totals(rows: list[StreamRow], taken: Mapping[int, overview.Taken]) -> dict[str, dict[str, int]]:
    names = ("read", "accepted", "duplicates", "dead", "suppressed")
    totals = {topic: dict.fromkeys(names, 0) for topic in topics.INPUTS}
    for row in rows:
        for name in names if row.stream_id in taken else ():
            totals[row.stream.topic][name] += getattr(taken[row.stream_id], name)
    return totals


def _owner(owner: dict[str, Any] | None) -> str | None:
    if owner is None:
        return None
    return f"{owner['application']} (backend {owner['pid']}{', ' + owner['address'] if owner['address'] else ''})"
