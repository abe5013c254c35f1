"""The frames in which requests and answers are sent."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from aiokafka.protocol.admin import (
    ApiVersionRequest_v0,
    CreatePartitionsRequest_v1,
    CreateTopicsRequest_v3,
    DeleteRecordsRequest_v1,
    DeleteTopicsRequest_v3,
    DescribeGroupsRequest_v2,
)
from aiokafka.protocol.commit import OffsetCommitRequest_v3, OffsetFetchRequest_v3
from aiokafka.protocol.coordination import FindCoordinatorRequest_v1
from aiokafka.protocol.fetch import FetchRequest_v11
from aiokafka.protocol.group import (
    HeartbeatRequest_v1,
    JoinGroupRequest_v5,
    LeaveGroupRequest_v1,
    SyncGroupRequest_v3,
)
from aiokafka.protocol.metadata import MetadataRequest_v5
from aiokafka.protocol.offset import OffsetRequest_v3
from aiokafka.protocol.produce import ProduceRequest_v7
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest_v0,
    AddPartitionsToTxnRequest_v0,
    EndTxnRequest_v0,
    InitProducerIdRequest_v0,
    TxnOffsetCommitRequest_v0,
)

__all__ = ["REQUESTS", "FrameReader", "Request", "encode_answer", "parse"]

# Of each, the version that the client library prefers; no other is offered.
REQUESTS: dict[int, Any] = {
    request.API_KEY: request
    for request in (
        ProduceRequest_v7,
        FetchRequest_v11,
        OffsetRequest_v3,
        MetadataRequest_v5,
        OffsetCommitRequest_v3,
        OffsetFetchRequest_v3,
        FindCoordinatorRequest_v1,
        JoinGroupRequest_v5,
        HeartbeatRequest_v1,
        LeaveGroupRequest_v1,
        SyncGroupRequest_v3,
        DescribeGroupsRequest_v2,
        ApiVersionRequest_v0,
        CreateTopicsRequest_v3,
        DeleteTopicsRequest_v3,
        DeleteRecordsRequest_v1,
        InitProducerIdRequest_v0,
        AddPartitionsToTxnRequest_v0,
        AddOffsetsToTxnRequest_v0,
        EndTxnRequest_v0,
        TxnOffsetCommitRequest_v0,
        CreatePartitionsRequest_v1,
    )
}
"""The requests that are understood, by their API key."""

_SIZE = struct.Struct(">i")
_HEADER = struct.Struct(">hhih")


class Request:
    """A request that was understood.

    Attributes:
        body: the structure of the client library.
        correlation: sent back with the answer.
        client_id: the id that the sender gives itself.
    """

    __slots__ = ("body", "client_id", "correlation")

    def __init__(self, body: Any, correlation: int, client_id: str) -> None:
        self.body = body
        self.correlation = correlation
        self.client_id = client_id


class FrameReader:
    """Splits a stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add data; yield the frames that are complete now, without their sizes."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _SIZE.size:
            (size,) = _SIZE.unpack_from(buffer)
            end = _SIZE.size + size
            if len(buffer) < end:
                return
            frame = bytes(buffer[_SIZE.size : end])
            del buffer[:end]
            yield frame


def parse(frame: bytes) -> Request | None:
    """Return the request in a frame; None if its kind or version was not offered."""
    if len(frame) < _HEADER.size:
        return None
    key, version, correlation, length = _HEADER.unpack_from(frame)
    kind = REQUESTS.get(key)
    if kind is None or version != kind.API_VERSION:
        return None
    start = _HEADER.size + max(length, 0)
    client_id = frame[_HEADER.size : start].decode("utf-8", "replace")
    return Request(kind.decode(BytesIO(frame[start:])), correlation, client_id)


def encode_answer(correlation: int, answer: Any) -> bytes:
    """Return the frame of an answer, with its size."""
    body: bytes = answer.encode()
    return _SIZE.pack(len(body) + 4) + _SIZE.pack(correlation) + body
