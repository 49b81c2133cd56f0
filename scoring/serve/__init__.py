"""`driftline score`: answers over HTTP and Kafka."""
