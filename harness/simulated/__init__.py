"""Simulated buses that behave as MQTT brokers and Kafka clusters do.

It may import `loop` and `kafka_cluster`, and the faults and the trace of the harness. Begin with
`_stand_ins`.
"""
