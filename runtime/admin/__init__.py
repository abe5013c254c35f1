"""Looking into a running application, and controlling it: the admin endpoint, dead letters.

Begin with `_endpoint`.
"""
