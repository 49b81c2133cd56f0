"""The list of metrics keeps Prometheus' conventions."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from prometheus_client import generate_latest

from runtime import metrics

_UNITS = ("_total", "_seconds", "_bytes", "_rows", "_records", "_entries", "_requests", "_users", "_events")
_WITHOUT_UNIT = {"driftline_ready", "driftline_train_step", "driftline_score_snapshot_step", "driftline_train_loss"}
_WITHOUT_UNIT |= {"driftline_score_kafka_up", "driftline_drift_input", "driftline_drift_step"}
_WITHOUT_UNIT |= {"driftline_export_snapshot_step", "driftline_ingest_topic_danger", "driftline_train_loss_excess"}
_LABELS = {"age", "topic", "partition", "reason", "outcome", "learner", "arm", "loss", "client", "part", "way", "state"}
_LABELS |= {"subject", "series", "detector", "branch"}  # of drift


def test_names_are_unique() -> None:
    names = [metric.name for metric in metrics.ALL]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("metric", metrics.ALL, ids=lambda metric: metric.name)
def test_a_metric_keeps_the_conventions(metric: metrics.Metric[...]) -> None:
    assert re.fullmatch(r"driftline_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.name.endswith(_UNITS) or metric.name in _WITHOUT_UNIT
    assert metric.help.endswith(".")
    assert metric.kind in get_args(metrics.Kind)


@pytest.mark.parametrize("metric", metrics.ALL, ids=lambda metric: metric.name)
def test_labels_are_few_and_name_no_person(metric: metrics.Metric[...]) -> None:
    assert set(metric.labels) <= _LABELS


def test_what_is_counted_is_exported() -> None:
    metrics.dead_letters.inc(3, topic="t-export", reason="empty")
    metrics.ingest_lag.set(7, topic="t-export", partition="0")
    with metrics.step_seconds.time(learner="l-export"):
        pass
    page = generate_latest(metrics.REGISTRY).decode()
    assert 'driftline_ingest_dead_letters_total{reason="empty",topic="t-export"} 3.0' in page
    assert 'driftline_ingest_lag_records{partition="0",topic="t-export"} 7.0' in page
    assert 'driftline_train_step_seconds_count{learner="l-export"} 1.0' in page


def test_a_partition_that_went_elsewhere_is_forgotten() -> None:
    metrics.ingest_lag.set(7, topic="t-gone", partition="0")
    metrics.ingest_lag.remove(topic="t-gone", partition="0")
    metrics.ingest_lag.remove(topic="t-gone", partition="0")
    assert "t-gone" not in generate_latest(metrics.REGISTRY).decode()
