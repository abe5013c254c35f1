"""What the runtime logs about an actor."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

from .._logs import ACTOR_LOG, OWN, get_logger

__all__ = ["RuntimeLog"]


class RuntimeLog(logging.LoggerAdapter[logging.Logger]):
    """The runtime's own lines about one actor, whose name they begin with.

    Which of several actors on one topic has failed must show under any logging format.
    """

    def __init__(self, name: str, extra: Mapping[str, object]) -> None:
        super().__init__(get_logger(ACTOR_LOG), {**extra, OWN: True})
        self._name = name

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, Any]:
        return super().process(f"actor {self._name!r}: {msg}", kwargs)
