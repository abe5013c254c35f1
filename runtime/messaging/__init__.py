"""Messages, and sending them: sockets, requests, replies and the connection that they share.

It may import `payloads` and below. Begin with `_socket`.
"""
