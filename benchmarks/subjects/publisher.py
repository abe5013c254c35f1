"""Publishes at full speed: packets encoded beforehand, on a plain socket, MQTT 3.1.1."""

from __future__ import annotations

import selectors
import socket
import struct

from ._child import RECEIVE_TOPIC, Order, arguments, report

_BLOCK = 250
_IN_FLIGHT = 1_000
_PAYLOAD = bytes(100)


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 10.0)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client = b"publisher"
    body = b"\x00\x04MQTT\x04\x02" + struct.pack("!HH", 0, len(client)) + client
    connection.sendall(bytes((0x10, len(body))) + body)
    answer = connection.recv(4)
    if answer != b"\x20\x02\x00\x00":
        raise SystemExit(f"the broker refused the publisher: {answer.hex()}")
    return connection


def _block(qos: int) -> bytes:
    topic = RECEIVE_TOPIC.encode()
    packets = []
    for number in range(1, _BLOCK + 1):
        packet_id = struct.pack("!H", number) if qos else b""
        body = struct.pack("!H", len(topic)) + topic + packet_id + _PAYLOAD
        packets.append(bytes((0x30 | qos << 1, 0x80 | len(body) & 0x7F, len(body) >> 7)) + body)
    return b"".join(packets)


def _publish(connection: socket.socket, order: Order) -> None:
    """Publish blocks that all use the same packet ids: a broker acknowledges before it reads on."""
    block = _block(order.qos)
    blocks = (order.warm_up + order.messages) // _BLOCK
    sent = confirmed = 0
    unsent = memoryview(b"")
    connection.setblocking(False)
    with selectors.DefaultSelector() as selector:
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        key = selector.register(connection, both)
        while sent < blocks or unsent or (order.qos and confirmed < 4 * _BLOCK * blocks):
            if not unsent and sent < blocks:
                waiting = _BLOCK * sent - confirmed // 4 if order.qos else 0
                if waiting <= _IN_FLIGHT - _BLOCK:
                    unsent = memoryview(block)
                    sent += 1
            wanted = both if unsent else selectors.EVENT_READ
            if key.events != wanted:
                key = selector.modify(connection, wanted)
            for _, ready in selector.select(10.0):
                if ready & selectors.EVENT_READ:
                    data = connection.recv(65_536)
                    if not data:
                        raise SystemExit("the broker closed the publisher's connection")
                    confirmed += len(data)
                if ready & selectors.EVENT_WRITE:
                    unsent = unsent[connection.send(unsent) :]
    connection.setblocking(True)
    connection.sendall(b"\xe0\x00")


if __name__ == "__main__":
    told = arguments()
    _publish(_connect(told.port), told)
    report("result", sent=told.warm_up + told.messages)
