"""Consuming from Kafka: sessions, group members and rebalances, fetching, commits.

It may import `transports` and `transports.kafka`, but not `producing`. Begin with
`_consumer_sessions`.
"""
