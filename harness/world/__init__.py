"""The applications under test, the buses they use, and who looks on.

It may import `loop` and `simulated`, and the errors, faults and trace of the harness. Begin with
`_world`.
"""
