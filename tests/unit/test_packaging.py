"""What an installation holds: every package of ours, and nothing else."""

from __future__ import annotations

import tomllib

from tests.unit.test_architecture import LAYERS, ROOT


def test_the_packages_that_are_installed_are_the_folders_there_are() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = [
        ".".join(file.parent.relative_to(ROOT).parts)
        for layer in LAYERS
        for file in (ROOT / layer).rglob("__init__.py")
    ]
    assert sorted(named) == sorted(folders)
