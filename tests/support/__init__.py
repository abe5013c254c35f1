"""Help for the tests; imported as ``support`` (pytest puts ``tests`` on the path)."""

from pathlib import Path

__all__ = [
    "durable_counter_path",
    "durable_publisher_path",
    "ledger_consumer_path",
    "reminder_counter_path",
]

durable_counter_path = str(Path(__file__).parent / "durable_counter.py")
"""A program to start: see `support.durable_counter`."""

durable_publisher_path = str(Path(__file__).parent / "durable_publisher.py")
"""A program to start: see `support.durable_publisher`."""

ledger_consumer_path = str(Path(__file__).parent / "ledger_consumer.py")
"""A program to start: see `support.ledger_consumer`."""

reminder_counter_path = str(Path(__file__).parent / "reminder_counter.py")
"""A program to start: see `support.reminder_counter`."""
