"""Publishing to Kafka: the publisher, its producers and their queues, and the creation of topics.

It may import `transports` and `transports.kafka`, but not `consuming`. Begin with `_publisher`.
"""
