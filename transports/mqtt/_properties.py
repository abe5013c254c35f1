"""What the properties of a broker's answers say, as far as they can be read."""

from __future__ import annotations

from ._packets import MalformedPacket, read_text, read_variable

__all__ = ["read_properties"]

_WHOLE_NUMBERS = {
    **dict.fromkeys((0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A), 1),
    **dict.fromkeys((0x13, 0x21, 0x22, 0x23), 2),
    **dict.fromkeys((0x02, 0x11, 0x18, 0x27), 4),
}
_TEXTS = frozenset({0x03, 0x08, 0x12, 0x15, 0x1A, 0x1C, 0x1F})
# Authentication data is bytes, with their length in front like a text.
_SKIPPED = {0x09: 1, 0x16: 1, 0x26: 2}


def read_properties(data: bytes, start: int, stop: int) -> tuple[dict[int, int | str], int]:
    """The properties of a packet by their identifiers, and where they end.

    Those that are malformed are left out, with what is behind them: what a packet says first of
    all stands elsewhere, and ending the connection over them would bring the same answer again on
    the next one. Of a property that is there twice the first counts. Bytes and user properties are
    passed over.

    Args:
        data: what holds the packet.
        start: where in ``data`` the length of the properties stands; they may be left out.
        stop: where the packet ends.
    """
    found: dict[int, int | str] = {}
    data = data[:stop]
    end = stop
    try:
        length, position = read_variable(data, start)
        end = min(position + length, stop)
        data = data[:end]
        while position < end:
            kind = data[position]
            position += 1
            value: int | str
            if (size := _WHOLE_NUMBERS.get(kind)) is not None:
                value = int.from_bytes(data[position : position + size], "big")
                position += size
                if position > end:
                    break
            elif kind in _TEXTS:
                value, position = read_text(data, position)
            elif kind in _SKIPPED:
                for _ in range(_SKIPPED[kind]):
                    _, position = read_text(data, position)
                continue
            else:
                break
            found.setdefault(kind, value)
    except (IndexError, MalformedPacket):
        pass
    return found, end
