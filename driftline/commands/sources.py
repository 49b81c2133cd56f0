"""`simulate` and `replay`: events from somewhere, into Kafka."""

from __future__ import annotations
