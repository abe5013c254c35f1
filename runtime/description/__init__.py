"""Description: what an application receives, replies and sends, for those who talk to it.

It may import `registration` and below. Begin with `_asyncapi`.
"""
