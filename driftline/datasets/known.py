"""A data set by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from driftline.datasets import amazon_titles, berka, foursquare, online_retail, plain
from driftline.datasets.dataset_names import NAMES
from driftline.recorded import Source
from runtime.lifecycle import ConfigurationError

_BUILDERS: Mapping[str, Callable[[Path], Source]] = {
    "stackoverflow": plain.stackoverflow,
    "taobao": plain.taobao,
    "collegemsg": plain.collegemsg,
    "fdh": plain.fdh,
    "online_retail": online_retail.source,
    "foursquare": foursquare.source,
    "berka": berka.source,
    "amazon_titles": amazon_titles.source,
}


def known_source(name: str, folder: Path) -> Source:
    """One of the data sets of `NAMES`, out of the folder that holds them all.

    :raises Usage: there is no such data set, or not in this folder.
    """
    if name not in _BUILDERS:
        raise ConfigurationError(
            f"no data set {name!r}", hint=f"known: {', '.join(NAMES)}; or name a file and its columns"
        )
    try:
        source = _BUILDERS[name](folder)
    except FileNotFoundError as error:
        raise _absent(name, Path(str(error.filename or folder))) from None
    if not source.file.exists():
        raise _absent(name, source.file)
    return source


def _absent(name: str, file: Path) -> ConfigurationError:
    return ConfigurationError(f"no file of {name}", where=str(file), hint="give the folder that holds the data sets")
