"""One delivery in one actor: attempts, retries, replies, dead letters and settlement.

It may import `routing` and below. Begin with `_delivery_processor`.
"""
