"""Tests on real servers: Postgres, the embedded broker, Apache Kafka."""
