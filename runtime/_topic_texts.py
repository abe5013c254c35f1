"""Topics as users write them: the braces of an f-string that is none are noticed."""

from __future__ import annotations

import re

from ..errors import ConfigurationError
from ._turn import current_turn

__all__ = ["topic_meant"]

# Each alternative has one way to match: a topic of 64 KB that a stranger has a part in must not
# take time that grows with its square.
_BRACES = re.compile(r"\{\{([A-Za-z_]\w*)\}\}|\{[A-Za-z_][\w.\[\]'\":!]*\}")


def topic_meant(topic: str) -> str:
    """The topic to publish on; ``{{name}}`` stands for ``{name}``.

    Raises:
        ConfigurationError: ``{name}`` stands in it, and not because it stands in the topic or the
            reply address of the message that is being handled.
    """
    if not isinstance(topic, str) or "{" not in topic:
        return topic

    turn = current_turn.get()

    def replace(found: re.Match[str]) -> str:
        if turn is not None and turn.addresses(found[0]):
            return found[0]
        if found[1] is None:
            raise ConfigurationError(
                f"topic {topic!r}: {found[0]} would be sent as it stands; write an f-string,"
                f" f{topic!r}, or {{{found[0]}}} where the braces are meant"
            )
        return f"{{{found[1]}}}"

    return _BRACES.sub(replace, topic)
