"""Injection: what the parameters of a handler get, worked out once from its signature.

It may import `messaging` and below. Begin with `_parameter_rules`.
"""
