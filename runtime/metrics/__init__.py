"""Metrics: what is measured while messages are handled, the metrics made of it, and exporting them.

It may import `options` and below. Begin with `_measurements`.
"""
