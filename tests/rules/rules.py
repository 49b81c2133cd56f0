"""All rules, in protocol order. To add one, append a `Rule` to its room; `python -m tests.rules 13` tries it."""

from __future__ import annotations

from tests.rules.ingesting import INGEST_RULES
from tests.rules.learning import LEARNING_RULES
from tests.rules.maintaining import MAINTENANCE_RULES
from tests.rules.rule import Rule

RULES: tuple[Rule, ...] = tuple(
    sorted((*INGEST_RULES, *MAINTENANCE_RULES, *LEARNING_RULES), key=lambda rule: rule.number)
)
