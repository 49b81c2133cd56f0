"""A file of events in batches, in its own order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from driftline.recorded.source import Source
from runtime.lifecycle import ConfigurationError

BATCH_ROWS = 65_536


def tables(source: Source, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The columns, batch by batch.

    :raises Usage: the file is unreadable or lacks a column.
    """
    if source.reshape is None:
        yield from read(source.file, columns)
        return
    for table in source.reshape.make(read(source.file, source.reshape.reads)):
        yield table.select(list(columns))


def read(file: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of a file, batch by batch.

    :raises Usage: the file is unreadable or lacks a column.
    """
    try:
        yield from _parquet(file, columns) if file.suffix == ".parquet" else _csv(file, columns)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ConfigurationError(
            f"unreadable: {error}", where=str(file), hint="check the file and the columns named"
        ) from None


def _parquet(file: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(file) as parquet:
        if missing := set(columns) - set(parquet.schema_arrow.names):
            raise KeyError(f"no column {', '.join(sorted(missing))}")
        for batch in parquet.iter_batches(BATCH_ROWS, columns=list(columns)):
            yield pa.table(batch)


def _csv(file: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    text = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()),
        include_columns=list(columns),
        strings_can_be_null=True,
        null_values=[""],
    )
    with pa_csv.open_csv(file, convert_options=text) as csv:
        for batch in csv:
            yield pa.table(batch)
