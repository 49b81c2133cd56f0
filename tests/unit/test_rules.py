"""The switches of `tests/rules` still fit the code they switch off; whether their tests bite is for `make rules`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rules.rule import Rule
from tests.rules.rules import RULES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.number}: {rule.says}")
def test_what_a_switch_replaces_stands_once_in_the_code_and_the_code_still_compiles(rule: Rule) -> None:
    text = (ROOT / rule.file).read_text(encoding="utf-8")
    for old, new in rule.off:
        assert text.count(old) == 1, f"{rule.file} no longer holds:\n{old}"
        text = text.replace(old, new)
    compile(text, rule.file, "exec")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.number}: {rule.says}")
def test_the_tests_of_a_switch_exist(rule: Rule) -> None:
    for test in rule.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), test
