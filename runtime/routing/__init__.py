"""From a subscription's deliveries to the mailboxes of actors.

It may import `registration` and below. Begin with `_router`.
"""
