"""Avro with a schema registry: schemas change, and each message names the one it was written with.

Run it on memory, or on a broker, with a registry that speaks the protocol of Confluent's::

    python examples/schema_registry.py
    python examples/schema_registry.py kafka://127.0.0.1:9092 http://127.0.0.1:8081

Without a registry it starts one of its own. It needs the package fastavro.
"""

# fastavro does not say what its files contain.
# pyright: reportUnknownMemberType=false

import asyncio
import io
import json
import sys
import threading
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated, Any

import fastavro
import msgspec

from spa_dat import Codec, DistributedApplication, Socket

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"
REGISTRY = sys.argv[2] if len(sys.argv) > 2 else ""

LARGEST_ANSWER = 1_000_000


class Registry:
    """What is needed of a registry: to add a schema, and to read those of a subject."""

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the registry {url!r} is neither http:// nor https://")
        self.url = url

    async def register(self, subject: str, schema: dict[str, Any]) -> int:
        """Return the id of a schema, which is added if it is new."""
        body = json.dumps({"schema": json.dumps(schema)}).encode()
        answer = await asyncio.to_thread(self._call, f"/subjects/{subject}/versions", body)
        return int(answer["id"])

    async def schemas(self, subject: str) -> dict[int, Any]:
        """Return all schemas that the subject has, by id."""
        found: dict[int, Any] = {}
        for version in await asyncio.to_thread(self._call, f"/subjects/{subject}/versions"):
            one = await asyncio.to_thread(self._call, f"/subjects/{subject}/versions/{version}")
            found[int(one["id"])] = fastavro.parse_schema(json.loads(one["schema"]))
        return found

    def _call(self, path: str, body: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
        request = urllib.request.Request(self.url + path, body, headers)  # noqa: S310 (checked)
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return json.loads(answer.read(LARGEST_ANSWER))


class RegisteredAvro(Codec):
    """Avro behind a zero byte and the id of its schema, as Confluent's serialisers write it.

    All schemas of the subject are read at the start, and no other is asked for later: otherwise
    each message with an id that somebody has made up would be a request to the registry.
    """

    content_type = "application/avro"

    def __init__(self, subject: str, schema: dict[str, Any]) -> None:
        self.subject = subject
        self.schema = schema
        self.parsed = fastavro.parse_schema(schema)
        self.id = 0
        self.known: dict[int, Any] = {}

    @asynccontextmanager
    async def opened(self, registry: Registry) -> AsyncGenerator[None]:
        """Register the schema, and read the others: a resource of the application."""
        self.id = await registry.register(self.subject, self.schema)
        self.known = await registry.schemas(self.subject)
        yield

    def encode(self, value: Any) -> bytes:
        file = io.BytesIO()
        fastavro.schemaless_writer(file, self.parsed, asdict(value))
        return b"\0" + self.id.to_bytes(4, "big") + file.getvalue()

    def decode(self, payload: bytes, kind: Any) -> Any:
        number = int.from_bytes(payload[1:5], "big")
        if payload[:1] != b"\0" or len(payload) < 5:
            raise ValueError("it does not begin with the id of a schema")
        if number not in self.known:
            raise ValueError(f"{self.subject} had no schema {number} when the program started")
        file = io.BytesIO(payload[5:])
        fields = fastavro.schemaless_reader(file, self.known[number], self.parsed)
        if file.read(1):
            raise ValueError("there is more after the datum")
        return msgspec.convert(fields, kind)


def record(*fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "Reading", "fields": list(fields)}


@dataclass
class OldReading:
    celsius: float


@dataclass
class Reading:
    celsius: float
    sensor: str


CELSIUS = {"name": "celsius", "type": "double"}
old = RegisteredAvro("reading", record(CELSIUS))
avro = RegisteredAvro(
    "reading", record(CELSIUS, {"name": "sensor", "type": "string", "default": "unknown"})
)


# A registry in this program, for those who have none.


stored: list[str] = []


class OwnRegistry(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        schema = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["schema"]
        if schema not in stored:
            stored.append(schema)
        self.answer({"id": stored.index(schema) + 1})

    def do_GET(self) -> None:
        last = self.path.rpartition("/")[2]
        if last == "versions":
            self.answer([number + 1 for number in range(len(stored))])
        else:
            self.answer({"id": int(last), "schema": stored[int(last) - 1]})

    def answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


def own_registry() -> str:
    server = ThreadingHTTPServer(("127.0.0.1", 0), OwnRegistry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


app = DistributedApplication(URL, name="schema-registry-example")


@asynccontextmanager
async def schemas() -> AsyncGenerator[None]:
    registry = Registry(REGISTRY or own_registry())
    async with old.opened(registry), avro.opened(registry):
        yield


app.resource("schemas", schemas)


@app.application("readings")
async def take(reading: Annotated[Reading, avro], schemas: None) -> None:
    print(f"{reading.celsius} °C, sensor {reading.sensor}")
    if reading.sensor != "unknown":
        app.stop()


@app.producer()
async def measure(socket: Socket, schemas: None) -> None:
    # By a program that is older than the field.
    await socket.publish("readings", OldReading(19.5), key="boiler", codec=old)
    await socket.publish("readings", Reading(21.5, "T1"), key="boiler", codec=avro)


if __name__ == "__main__":
    app.run()
