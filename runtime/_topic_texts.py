"""Topics as users write them: the braces of an f-string that is none are noticed."""

from __future__ import annotations

import re

from ..errors import ConfigurationError
from ._turn import current_turn

__all__ = ["topic_meant"]

_NAME = r"[A-Za-z_]\w*"
_BRACES = re.compile(rf"\{{\{{({_NAME})\}}\}}|\{{{_NAME}[\w.\[\]'\":!]*\}}")


def topic_meant(topic: str) -> str:
    """The topic to publish on; ``{{name}}`` stands for ``{name}``.

    Raises:
        ConfigurationError: ``{name}`` stands in it, and not because it stands in the topic or the
            reply address of the message that is being handled.
    """
    if not isinstance(topic, str) or "{" not in topic:
        return topic

    def replace(found: re.Match[str]) -> str:
        if found[1] is not None:
            return f"{{{found[1]}}}"
        turn = current_turn.get()
        if turn is None or not turn.addresses(found[0]):
            raise ConfigurationError(
                f"topic {topic!r}: {found[0]} would be sent as it stands; write an f-string,"
                f" f{topic!r}, or {{{found[0]}}} where the braces are meant"
            )
        return found[0]

    return _BRACES.sub(replace, topic)
