"""Settings of the runtime's own topics that make a cluster lose what is in them."""

from __future__ import annotations

from collections.abc import Mapping

from ._topic_names import Names

__all__ = ["DECISIVE_SETTINGS", "unfit_settings"]

_POLICY, _RETENTION = "cleanup.policy", ("retention.ms", "retention.bytes")
_UNLIMITED = "-1"

DECISIVE_SETTINGS = (_POLICY, *_RETENTION)
"""The settings that `unfit_settings` looks at."""


def unfit_settings(name: str, names: Names, settings: Mapping[str, str]) -> str | None:
    """Say why one of the runtime's own topics does not keep what it has to, and what to do.

    Args:
        name: of the topic.
        names: tells what it is for.
        settings: those of `DECISIVE_SETTINGS` that are known.

    Returns:
        None if it does.
    """
    policy = settings.get(_POLICY)
    if policy is None:
        return None
    if names.are_states(name):
        limits = {key: settings.get(key, _UNLIMITED) for key in _RETENTION}
        if "delete" not in policy or set(limits.values()) == {_UNLIMITED}:
            return None
        named = ", ".join(f"{key}={value}" for key, value in limits.items() if value != _UNLIMITED)
        what, right = f"loses the states of keys after {named}", "compact"
    elif "compact" not in policy:
        return None
    elif name.startswith(names.replies("")):
        what, right = "accepts no replies, which have no key", "delete"
    else:
        what, right = "keeps only the last dead letter of each key", "delete"
    return (
        f"topic {name!r} has {_POLICY}={policy} and {what}: set it to {right!r}, for example with"
        f" kafka-configs.sh --alter --entity-type topics --entity-name {name} --add-config"
        f" {_POLICY}={right}"
    )
