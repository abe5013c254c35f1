"""A real Kafka broker for a test; see `spa_dat.testing`."""

from __future__ import annotations

from spa_dat.testing import Acl, Kafka

__all__ = ["Acl", "Kafka"]
