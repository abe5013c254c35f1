"""Routing: putting a subscription's deliveries into the mailboxes of actors.

It may import `registration` and below. Begin with `_router`.
"""
