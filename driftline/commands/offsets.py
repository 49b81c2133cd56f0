"""`offsets show` and `offsets rebind`: how far each stream has been read, and what to do when Kafka changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

import typer

from contracts import topics
from driftline import rebind as rebinding
from driftline.cli_context import Session
from driftline.commands import AsJson, example, session
from driftline.output import as_json, note, say, table
from driftline.rebind import Act, Rebinding
from runtime import kafka
from runtime.lifecycle import Transient
from storage import overview
from storage.log import offsets as stored
from storage.log.offsets import Fenced, StreamRow
from storage.overview import Far
from streams.ingest.start_positions import Range

offsets = typer.Typer(help="How far each stream has been read.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """The verbs of this file."""
    offsets.command("show", epilog=example("driftline offsets show", "driftline offsets show --all --json"))(show)
    offsets.command("rebind", epilog=example("driftline offsets rebind", "driftline offsets rebind --yes"))(rebind)
    app.add_typer(offsets, name="offsets")


def show(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Streams of replaced topics too.")] = False,
    json: AsJson = False,
) -> None:
    """Print the next offset to read of each stream, as Postgres has it. Their ids and offsets make a cursor.

    Named too are records in the log whose time lies more than a day ahead of those before them.
    """
    with session(context).reading() as connection:
        rows = [row for row in stored.streams(connection) if everything or not row.retired]
        far = overview.far(connection)
    if json:
        as_json([{**asdict(row), "far": far.get(row.stream_id, overview.NO_FAR)} for row in rows])
        return
    table(
        ["stream", "topic", "partition", "next offset", "epoch", "life", "retired", "topic id", "cluster"],
        [
            (
                str(row.stream_id),
                row.stream.topic,
                row.stream.partition,
                row.next_offset,
                row.epoch,
                row.stream.life,
                row.retired,
                row.stream.topic_id,
                row.stream.cluster_id,
            )
            for row in rows
        ],
    )
    for row in rows:
        if (found := far.get(row.stream_id)) is not None:
            note(f"{row.stream.topic}[{row.stream.partition}]: {_told(found)}; look at their producer's clock")


def _told(far: Far) -> str:
    """Records ahead of their stream, in words."""
    what = "1 record lies" if far.records == 1 else f"{far.records:,} records lie"
    those = "it" if far.records == 1 else "them"
    where = "at offset " if far.records == 1 else "at offsets "
    more = "the last ones " if far.records > len(far.offsets) else ""
    return f"{what} more than a day ahead of those before {those}, {more}{where}{', '.join(map(str, far.offsets))}"


def rebind(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    undrained: Annotated[
        bool, typer.Option("--undrained", help="Adopt new partitions though old ones hold unread records.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Take Kafka as it is now: a recreated topic, another broker, new partitions, offsets that are gone.

    Shows what it would do, and asks. What is given up stays visible: gaps as segments marked lost, replaced
    topics as retired streams. Exit 3 when it must not be done.
    """
    call = session(context)
    changes = planned(call, undrained=undrained)
    if not json:
        _show(changes)
    if changes and not yes:
        typer.confirm("Do it?", abort=True, err=True)
    with call.writing() as connection:
        try:
            rebinding.apply(connection, changes)
        except Fenced as error:
            raise Transient(str(error), hint="stop `ingest`, and run it again") from None
    if json:
        as_json([asdict(change) for change in changes])
    elif changes:
        say("done; start `driftline ingest` again")


def planned(call: Session, *, undrained: bool = False) -> list[Rebinding]:
    """What rebinding would do.

    :raises Refused: it must not be done.
    """
    with call.reading() as connection:
        rows = stored.streams(connection)
    described = kafka.describe(call.kafka, list(topics.INPUTS))

    def first_new(row: StreamRow, end: int) -> int:
        from driftline.audit.auditor import first_unexplained

        note(f"{row.stream.topic}[{row.stream.partition}] lost its end; comparing what it holds with what was read ...")
        return first_unexplained(
            call.postgres_url,
            call.kafka,
            row.stream_id,
            end,
            duplicate_window=call.settings.ingest.duplicate_window,
        )

    with ranges(call) as range_of:
        return rebinding.plan(rows, described, range_of, first_new, undrained=undrained)


@contextmanager
def ranges(call: Session) -> Iterator[Range]:
    """A way to ask for a partition's first offset and end."""
    consumer = kafka.consumer(call.kafka, group="driftline-look")
    try:
        yield lambda topic, partition: kafka.low_high(consumer, call.kafka.physical(topic), partition)
    finally:
        consumer.close()


def _show(changes: list[Rebinding]) -> None:
    if not changes:
        say("nothing to rebind: Kafka is as Postgres remembers it")
        return
    rows = [(change.act, change.stream.topic, change.stream.partition, change.offset, change.why) for change in changes]
    table(["", "topic", "partition", "at", "because"], rows)
    goes_on = {change.stream.topic_id for change in changes if change.act is not Act.RETIRE}
    if any(change.act is Act.RETIRE and change.stream.topic_id not in goes_on for change in changes):
        say("what the retired streams' topics held beyond these offsets was not read and will not be")
