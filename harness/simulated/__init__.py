"""Simulated buses that behave like MQTT brokers and Kafka clusters.

It may import `loop` and `kafka_cluster`, and the faults and the trace of the harness. Begin with
`_stand_ins`.
"""
