"""Payloads in formats of your own: Avro with fastavro, and Protobuf.

Run it on memory, or on a broker::

    python examples/own_formats.py
    python examples/own_formats.py mqtt://127.0.0.1:1883

It needs the packages fastavro and protobuf.
"""

# fastavro does not say what its files contain.
# pyright: reportUnknownMemberType=false

import dataclasses
import io
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import fastavro
import msgspec
from google.protobuf.message import Message as ProtobufMessage
from google.protobuf.wrappers_pb2 import DoubleValue

from spa_dat import Codec, DistributedApplication, Socket, Topic

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"


class AvroCodec(Codec):
    """Avro, one datum without a header: both sides have the schema."""

    content_type = "application/avro"

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = fastavro.parse_schema(schema)

    def encode(self, value: Any) -> bytes:
        file = io.BytesIO()
        fastavro.schemaless_writer(file, self.schema, dataclasses.asdict(value))
        return file.getvalue()

    def decode(self, payload: bytes, kind: Any) -> Any:
        file = io.BytesIO(payload)
        fields = fastavro.schemaless_reader(file, self.schema, None)
        if file.read(1):
            raise ValueError("there is more after the datum")
        return msgspec.convert(fields, kind)


class ProtobufCodec(Codec):
    """Protobuf: the annotated type is the class that protoc has made."""

    content_type = "application/protobuf"

    def encode(self, value: ProtobufMessage) -> bytes:
        return value.SerializeToString()

    def decode(self, payload: bytes, kind: Any) -> Any:
        return kind.FromString(payload)


@dataclass
class Reading:
    sensor: str
    celsius: float


avro = AvroCodec(
    {
        "type": "record",
        "name": "Reading",
        "fields": [{"name": "sensor", "type": "string"}, {"name": "celsius", "type": "double"}],
    }
)
protobuf = ProtobufCodec()

app = DistributedApplication(URL, name="own-formats-example")
readings = Topic[Annotated[Reading, avro]]("plant/readings")
conversion = Topic[float, Annotated[DoubleValue, protobuf]]("plant/fahrenheit")


@app.application(readings)
async def reading(reading: Annotated[Reading, avro], socket: Socket) -> None:
    print(f"{reading.sensor}: {reading.celsius} °C")
    converted = await socket.request(conversion, reading.celsius)
    print(f"{reading.sensor}: {converted.value} °F")
    app.stop()


@app.application(conversion)
async def fahrenheit(celsius: float) -> Annotated[DoubleValue, protobuf]:
    return DoubleValue(value=celsius * 9 / 5 + 32)


@app.producer()
async def measure(socket: Socket) -> None:
    await socket.publish(readings, Reading("boiler", 95.0))


if __name__ == "__main__":
    app.run()
