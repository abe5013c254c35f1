"""Assigning partitions so that those of several topics with one number stay together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._aiokafka_private import ConsumerProtocolMemberAssignment, RoundRobinPartitionAssignor

__all__ = ["NumberAssignor"]


class NumberAssignor(RoundRobinPartitionAssignor):  # type: ignore[misc]
    """Gives all partitions with one number to one member, one number after the other.

    With one topic that is what the library does by default, and it has the same name. So members of
    earlier versions may be in the group, and an actor may get another topic at its next start,
    although the group still knows its members by their names. Members do not rely on it: whoever
    assigns the partitions of a group may be another program.

    Where members do not want the same topics, those that want most of them get everything: two that
    have different partitions with one number would displace each other.
    """

    @classmethod
    def assign(
        cls, cluster: Any, members: Mapping[str, Any]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """As in the library."""
        wanted = {member: {*metadata.subscription} for member, metadata in members.items()}
        counts = {
            topic: len(cluster.partitions_for_topic(topic) or ())
            for topic in sorted(set().union(*wanted.values()))
        }
        found: dict[str, dict[str, list[int]]] = {member: {} for member in members}
        for number in range(max(counts.values(), default=0)):
            topics = [topic for topic, count in counts.items() if number < count]
            shares = {member: len(those.intersection(topics)) for member, those in wanted.items()}
            most = max(shares.values())
            candidates = sorted(member for member, share in shares.items() if share == most)
            member = candidates[number % len(candidates)]
            for topic in topics:
                if topic in wanted[member]:
                    found[member].setdefault(topic, []).append(number)
        return {
            member: ConsumerProtocolMemberAssignment(cls.version, sorted(those.items()), b"")
            for member, those in found.items()
        }
