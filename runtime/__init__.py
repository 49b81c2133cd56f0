"""What every process stands on: settings, telemetry, Kafka clients, life cycle."""
