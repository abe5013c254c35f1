"""Compaction: of the records with the same key, only the last one is kept."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

from ._record_batches import Batch, keep_records, records_in

__all__ = ["compacted"]


def compacted(
    batches: Sequence[Batch], unreadable: Container[int], now: float, retention: float
) -> list[Batch]:
    """Return what is left of batches, as a broker's log cleaner leaves it.

    A tombstone, and the marker of a transaction of which nothing is left, is kept by the first
    cleaning that comes across it, and removed by the first one after its time.

    Args:
        batches: batches, oldest first, all of whose transactions have ended.
        unreadable: the offsets of aborted records, all of which go.
        now: wall time in seconds since 1970.
        retention: seconds for which tombstones and markers are kept.
    """
    found = {batch.base: _readable(batch, unreadable) for batch in batches}
    latest = {
        record.key: record.offset
        for records in found.values()
        for record in records
        if record.key is not None
    }
    kept: list[Batch] = []
    # The producers with records between their last marker and here.
    present: set[int] = set()
    for batch in batches:
        over = batch.remove_at is not None and now >= batch.remove_at
        if batch.control:
            empty = batch.producer not in present
            present.discard(batch.producer)
            left = batch
            if empty and over:
                left = keep_records(batch, ())
            elif empty and batch.remove_at is None:
                left = replace(batch, remove_at=now + retention)
        else:
            records = [
                record
                for record in found[batch.base]
                if latest.get(record.key) == record.offset
                and (record.value is not None or not over)
            ]
            left = keep_records(batch, {record.offset for record in records})
            if batch.remove_at is None and any(record.value is None for record in records):
                left = replace(left, remove_at=now + retention)
            if records and batch.transactional:
                present.add(batch.producer)
        # The last one stays, if need be without records, so that readers get to the end.
        if not left.empty or batch is batches[-1]:
            kept.append(left)
    return kept


def _readable(batch: Batch, unreadable: Container[int]) -> list[Any]:
    if batch.control or batch.empty:
        return []
    return [record for record in records_in(batch.data) if record.offset not in unreadable]
