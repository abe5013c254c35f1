"""The applications under test, the buses they use, and who looks on.

It may import `loop` and `simulated`. Begin with `_world`."""
