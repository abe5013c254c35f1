"""Dead letters: what they say, and finding those that a bus keeps.

It may import `messaging` and below. Begin with `_writing` and `_reading`. Storing them is in
`handling`, replaying them in `admin`.
"""
