"""A Kafka cluster inside the process, which speaks Kafka's protocol.

It may import `loop`, over whose network its clients connect. Begin with `_cluster`.
"""

from __future__ import annotations

from ._access_rules import Right
from ._client_time import virtual_time
from ._cluster import MARKER_DELAY, MAX_BATCH, Cluster, ClusterTopic
from ._connection_handler import serve
from ._errors import ErrorCode, RequestRefused
from ._group_member import Member
from ._groups import Group, GroupState
from ._partition_log import AppendedRecord, Log
from ._record_batches import encode_record
from ._transactions import Transaction, TransactionState

__all__ = [
    "MARKER_DELAY",
    "MAX_BATCH",
    "AppendedRecord",
    "Cluster",
    "ClusterTopic",
    "ErrorCode",
    "Group",
    "GroupState",
    "Log",
    "Member",
    "RequestRefused",
    "Right",
    "Transaction",
    "TransactionState",
    "encode_record",
    "serve",
    "virtual_time",
]
