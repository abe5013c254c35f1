"""Payloads: decoding, encoding and checking values by their annotated types.

It may import `options` and below. Begin with `_codec`.
"""
