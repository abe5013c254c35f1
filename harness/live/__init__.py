"""Applications under test on real brokers, in real time.

It may import everything in the harness but the fixture and the transport kit. Begin with
`_live_world`.
"""
