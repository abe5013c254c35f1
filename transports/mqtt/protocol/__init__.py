"""MQTT 5 on one connection: packets, flow, keep-alive, and the client library.

It may import the rest of `transports`, but no room of `mqtt` above it. Begin with `_client`.
"""
