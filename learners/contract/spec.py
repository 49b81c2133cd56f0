"""What is known of a learner before it is built: its name, options, tasks and needs. Nothing here imports torch.

A learner is one `LearnerSpec`, named by an entry point of the group `driftline.learners`. All that processes decide
by the kind of a learner they decide by its spec.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

from learners.contract.needs import Needs, TaskKind, TaskSpec

if TYPE_CHECKING:
    from learners.contract.protocol import Learner

T = TypeVar("T")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class BadOption(ValueError):
    """An option is unknown, of another type, or out of its range; the message names those there are."""


def option(default: T, help: str) -> T:
    """A field of a configuration, with a line that says what it does and in which unit."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The same learner otherwise configured, to be run beside it."""

    config: Callable[[Any], Any]
    """Its configuration, from the learner's."""
    frozen: bool = False
    """It stops learning after `warmup_events` events of its configuration."""


@dataclass(frozen=True, kw_only=True)
class LearnerSpec:
    """A learner by declaration.

    :raises ValueError: the name is none, or `config` is no dataclass.
    """

    name: str
    """Lower case, digits and "_", at most 32 characters: it stands in metrics, snapshot ids and topics."""
    version: str
    """Of its state and its meaning: raised whenever the same journal would give other weights."""
    summary: str
    """One line for people."""
    config: type[Any]
    """Frozen dataclass of its options; a field `seed` is filled in by whoever builds it."""
    build: str
    """"module:callable": `callable(config, name) -> Learner`. Imported when a learner is built, and not before."""
    tasks: Callable[[Any], tuple[TaskSpec, ...]]
    """What it answers, by its configuration; the first task is the one asked where a request names none."""
    needs: Callable[[Any], Needs]
    """The context it asks for, by its configuration."""
    baselines: tuple[str, ...] = ()
    """Arms that run beside it: names of its variants, or of other learners."""
    variants: Mapping[str, Variant] = field(default_factory=dict)
    names_users: bool = False
    """Names of users may stand in its state, or in that of what asks it."""
    devices: frozenset[str] = frozenset({"cpu"})
    """Types of torch devices it computes on."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"{self.name!r} is no name of a learner: lower case, digits and '_', at most 32 characters"
            )
        if not hasattr(self.config, "__dataclass_fields__"):
            raise ValueError(f"learner {self.name}: config must be a dataclass, not {self.config!r}")

    def configured(self, options: Mapping[str, Any], *, seed: int) -> Any:
        """A configuration.

        :raises BadOption: an option is unknown, ill-typed or out of its range.
        """
        return configured(self.config, options, what=f"learner {self.name}", seed=seed)

    def shared(self, config: object) -> Any:
        """Its own configuration beside another learner's: fields of the same name are equal."""
        return self.config(**_common(self.config, config))

    def task_of(self, kind: TaskKind, config: object) -> TaskSpec | None:
        """Its task of a kind; None: it has none."""
        return next((task for task in self.tasks(config) if task.kind == kind), None)

    def builder(self) -> Callable[[Any, str], Learner]:
        """What builds it.

        :raises ImportError, AttributeError: the package that ships it is broken.
        """
        module, _, name = self.build.partition(":")
        return cast("Callable[[Any, str], Learner]", getattr(import_module(module), name))


def options_of(config: type[Any]) -> tuple[str, ...]:
    """Names of the options of a configuration; the seed is given apart."""
    return tuple(item.name for item in fields(config) if item.name != "seed")


def configured(
    config: type[T], options: Mapping[str, Any], *, what: str, seed: int | None = None, like: object | None = None
) -> T:
    """A configuration from plain values, as settings or a manifest hold them.

    :param what: whose it is, for the message.
    :param like: another one, whose fields of the same name stand in for options that are not given.
    :raises BadOption: an option is unknown, ill-typed or out of its range.
    """
    known = options_of(config)
    if unknown := sorted(options.keys() - set(known)):
        raise BadOption(f"{what} has no option {', '.join(map(repr, unknown))}{_meant(unknown, known)}")
    given = ({} if like is None else _common(config, like)) | dict(options)
    if seed is not None and "seed" in {item.name for item in fields(config)}:  # type: ignore[arg-type]
        given["seed"] = seed
    try:
        return _converted(given, config)
    except ValueError as error:  # of msgspec, or of the configuration itself
        raise BadOption(f"{what}: {error}; there are {', '.join(known)}") from None


def _converted(given: Mapping[str, Any], config: type[T]) -> T:
    try:
        import msgspec
    except ImportError:  # a machine that only loads bundles: what stands in one was checked where it was made
        return config(**given)
    return msgspec.convert(given, config, strict=True)


def _common(config: type[Any], other: object) -> dict[str, Any]:
    return {item.name: getattr(other, item.name) for item in fields(config) if hasattr(other, item.name)}


def _meant(unknown: list[str], known: tuple[str, ...]) -> str:
    near = [found[0] for name in unknown if (found := get_close_matches(name, known, 1))]
    meant = f" (meant: {', '.join(near)}?)" if near else ""
    return f"{meant}; there are {', '.join(known) or 'none'}"
