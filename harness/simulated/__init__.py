"""Simulated buses that behave as MQTT brokers and Kafka clusters do.

Begin with `_profiles`."""
