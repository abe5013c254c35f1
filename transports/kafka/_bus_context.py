"""`BusContext`: what the parts of a bus have in common."""

from __future__ import annotations

from dataclasses import dataclass

from .._contract import Surroundings
from .._wire_formats import WireFormats
from ._config import KafkaConfig
from ._records import RecordCodec
from ._takeovers import Contest
from ._topic_facts import SharedTopicFacts
from ._topic_names import Names
from .producing._topic_creation import Topics

__all__ = ["BusContext"]


@dataclass(frozen=True, slots=True)
class BusContext:
    """What all parts of one bus use.

    Attributes:
        config: the configuration.
        names: translates topics.
        codec: reads and writes records.
        wires: the formats that messages have.
        surroundings: identity, counters, randomness.
        topics: makes sure that topics exist.
        facts: looks up topics that consumers have.
        contest: what members of groups have in common when another program takes their places.
    """

    config: KafkaConfig
    names: Names
    codec: RecordCodec
    wires: WireFormats
    surroundings: Surroundings
    topics: Topics
    facts: SharedTopicFacts
    contest: Contest
