"""OpenTelemetry spans of what an application does with messages.

It may import every other folder of the runtime, and nothing imports it but `spa_dat.tracing`. Begin
with `_tracing`.
"""
