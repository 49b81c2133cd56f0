"""Where bundles go: a folder of any kind that fsspec knows (`file`, `s3`, `gs`, `abfs`, `ftp`, ..).

    LEARNER/latest.json        which bundle is the newest
    LEARNER/<sha256>/          a bundle; it is there if its manifest.json is

Files are written under a temporary name and then moved, the manifest last. A move of one file is atomic on a local
disk. Object stores have no atomic rename: there a move copies and deletes, but an object appears whole or not at all.
So nowhere is a half written bundle seen, as long as readers begin with the manifest.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from fsspec.core import url_to_fs

from runtime.lifecycle import ConfigurationError, DriftlineError, Transient
from runtime.settings import hide_password
from scoring.export.bundle import EXAMPLE, MANIFEST, WEIGHTS, Bundle, canonical

LATEST = "latest.json"
ABANDONED_S = 3600.0
"""What was begun, not finished, and not touched for so long, was left by a process that died."""
_UNFINISHED = ".writing-"
_BUNDLE = re.compile(r"[0-9a-f]{64}")
_TOKEN = secrets.token_hex(4)
"""Of this process: no two write under one temporary name."""


class Away(Transient):
    """The target cannot be reached, read or written now."""


class BundleTarget:
    """A place of bundles. Make a new one for each piece of work: a connection that broke is not used again."""

    def __init__(self, uri: str, options: Mapping[str, Any] | None = None) -> None:
        """
        :param options: of the fsspec implementation (credentials, endpoint, ..).
        :raises Usage: fsspec knows no such kind of place, or its package is not installed.
        :raises Away: it cannot be reached.
        """
        self.where = hide_password(uri)
        try:
            with self._reached():
                self._files, root = url_to_fs(uri, **{**(options or {}), "skip_instance_cache": True})
        except Away as error:
            if isinstance(error.__cause__, ValueError | ImportError | TypeError):
                todo = "give a path or a URI that fsspec knows, and install its package (s3fs for s3, gcsfs for gs, ..)"
                raise ConfigurationError(error.what, where=self.where, hint=todo) from None
            raise
        self._root = root.rstrip("/")

    # -- reading --

    def files(self, *place: str) -> dict[str, bytes]:
        """The files of the bundle at a place below the root, those that are there.

        :raises Away: see the class.
        """
        found = {name: self._read(*place, name) for name in (WEIGHTS, EXAMPLE, MANIFEST)}
        return {name: body for name, body in found.items() if body is not None}

    def holds(self, learner: str, bundle: str) -> bool:
        """Whether the bundle is there."""
        return self._read(learner, bundle, MANIFEST) is not None

    def latest(self, *place: str) -> dict[str, Any] | None:
        """What latest.json says; None = there is none that can be read as such."""
        body = self._read(*place, LATEST)
        try:
            found = json.loads(body or b"null")
        except ValueError:
            return None
        return found if isinstance(found, dict) and isinstance(found.get("bundle"), str) else None

    def folders(self, *place: str) -> list[str]:
        """Names of the folders (and files) at a place, sorted."""
        with self._reached():
            self._files.invalidate_cache()
            try:
                found = self._files.ls(self._path(*place), detail=False)
            except FileNotFoundError:
                return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def manifests(self, learner: str) -> dict[str, dict[str, Any]]:
        """Every bundle of a learner that is there, with its manifest as it stands, the newest first."""
        found = {}
        for name in self.folders(learner):
            body = self._read(learner, name, MANIFEST) if _BUNDLE.fullmatch(name) else None
            with suppress(ValueError, KeyError, TypeError):
                manifest = json.loads(body or b"null")
                found[name] = (_place(manifest), manifest)
        return {name: manifest for name, (_, manifest) in sorted(found.items(), key=lambda one: one[1][0])[::-1]}

    # -- writing --

    def prepare(self) -> None:
        """Makes the root, where there is none."""
        with self._reached():
            self._files.makedirs(self._root, exist_ok=True)

    def put(self, learner: str, bundle: Bundle, *, moving: Callable[[], None] = lambda: None) -> None:
        """Writes a bundle; what is there of it is replaced.

        :param moving: called before each file gets its name (fault injection).
        """
        unfinished, final = f"{_UNFINISHED}{bundle.id}-{_TOKEN}", bundle.id
        with self._reached():
            self._files.makedirs(self._path(learner, unfinished), exist_ok=True)
            for name, body in bundle.files.items():
                self._write(self._path(learner, unfinished, name), body)
            self._files.makedirs(self._path(learner, final), exist_ok=True)
            for name in bundle.files:
                moving()
                self._files.mv(self._path(learner, unfinished, name), self._path(learner, final, name))
        self._remove(learner, unfinished)

    def point(self, learner: str, bundle: Bundle) -> None:
        """From now on latest.json names this bundle."""
        snapshot = bundle.manifest["snapshot"]
        told = {"bundle": bundle.id, "learner": learner, **{name: snapshot[name] for name in ("id", "branch", "step")}}
        unfinished = self._path(learner, f"{_UNFINISHED}{_TOKEN}.json")
        with self._reached():
            self._write(unfinished, canonical(told))
            self._files.mv(unfinished, self._path(learner, LATEST))

    def retain(self, learner: str, keep: int) -> list[str]:
        """Removes all but the newest `keep` bundles and the one that latest.json names; which."""
        latest = self.latest(learner)
        if latest is None:
            return []
        gone = [name for name in list(self.manifests(learner))[keep:] if name != latest["bundle"]]
        for name in gone:
            with self._reached(), suppress(FileNotFoundError):
                self._files.rm(self._path(learner, name, MANIFEST))  # from here on nobody sees it
            self._remove(learner, name)
        return gone

    def sweep(self, learner: str, now: datetime) -> list[str]:
        """Removes what a process that died has left half written; which. Places that tell no times keep it, unseen."""
        gone = []
        for name in self.folders(learner):
            begun = name.startswith(_UNFINISHED) or (_BUNDLE.fullmatch(name) and not self.holds(learner, name))
            if begun and self._untouched_s(learner, name, now) > ABANDONED_S:
                self._remove(learner, name)
                gone.append(name)
        return gone

    # -- fsspec --

    def _path(self, *place: str) -> str:
        return "/".join([self._root, *place])

    def _read(self, *place: str) -> bytes | None:
        with self._reached():
            try:
                return bytes(self._files.cat_file(self._path(*place)))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _write(self, path: str, body: bytes) -> None:
        with self._files.open(path, "wb") as out:
            out.write(body)
            out.flush()
            with suppress(OSError, AttributeError):  # only files of this machine have a descriptor
                os.fsync(out.fileno())

    def _remove(self, *place: str) -> None:
        with self._reached(), suppress(FileNotFoundError):  # a store without folders has nothing left by now
            self._files.rm(self._path(*place), recursive=True)

    def _untouched_s(self, learner: str, name: str, now: datetime) -> float:
        """Seconds since anything in it was written; -inf where that is not told."""
        inside = self.folders(learner, name) if not name.endswith(".json") else []
        times = []
        for path in [self._path(learner, name), *(self._path(learner, name, file) for file in inside)]:
            with self._reached(), suppress(NotImplementedError, KeyError, FileNotFoundError):
                at = self._files.modified(path)
                times.append(at if at.tzinfo else at.replace(tzinfo=UTC))
        return min([(now - at).total_seconds() for at in times], default=float("-inf"))

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Each kind of place has errors of its own: whatever it is, the place did not do as asked."""
        try:
            yield
        except (DriftlineError, NotImplementedError):
            raise
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            todo = "is it there, and may this process write there?"
            raise Away(f"{type(error).__name__}: {said}", where=self.where, hint=todo) from error


def _place(manifest: Mapping[str, Any]) -> tuple[int, int]:
    """Branch and step: the greater is the newer.

    :raises KeyError, TypeError, ValueError: it is no manifest.
    """
    return int(manifest["snapshot"]["branch"]), int(manifest["snapshot"]["step"])
