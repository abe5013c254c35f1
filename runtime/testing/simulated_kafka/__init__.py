"""A Kafka cluster inside the process, that speaks Kafka's protocol."""

from __future__ import annotations

from ._cluster import Cluster, Topic
from ._errors import Code, Refused
from ._groups import Group, GroupState
from ._log import Log, StoredRecord
from ._member import Member
from ._time import virtual_time

__all__ = [
    "Cluster",
    "Code",
    "Group",
    "GroupState",
    "Log",
    "Member",
    "Refused",
    "StoredRecord",
    "Topic",
    "virtual_time",
]
