"""Spans of messages: one trace, from an order over the price of it to the invoice.

It needs OpenTelemetry's SDK (``pip install opentelemetry-sdk``). Run it on memory, or on a broker::

    python examples/tracing.py
    python examples/tracing.py mqtt://127.0.0.1:1883
"""

import sys

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from spa_dat import DistributedApplication, RetryPolicy, Socket
from spa_dat.tracing import Tracing

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"

# In production this is an exporter to a collector, behind a BatchSpanProcessor.
exporter = InMemorySpanExporter()
provider = TracerProvider(resource=Resource.create({"service.name": "tracing-example"}))
provider.add_span_processor(SimpleSpanProcessor(exporter))

app = DistributedApplication(URL, name="tracing-example")
app.use(Tracing(provider))


@app.application("orders/{customer}")
async def order(item: str, customer: str, socket: Socket) -> None:
    price = await socket.request("prices", item, reply=float, timeout=10)
    await socket.publish(f"invoices/{customer}", f"{item} for {price:.2f}")


@app.application("prices")
def price(item: str) -> float:
    return 0.25 * len(item)


@app.application("invoices/{customer}", retry=RetryPolicy(attempts=2, first=0.1), state=list)
async def invoice(text: str, customer: str, state: list[str]) -> None:
    state.append(text)
    if len(state) == 1:
        raise ConnectionError("the printer is busy")
    print(f"{customer} pays: {text}")
    app.stop()


@app.producer()
async def customer(socket: Socket) -> None:
    await socket.publish("orders/anna", "bolt")


def show(parent: int | None, spans: list[ReadableSpan], depth: int = 0) -> None:
    """Print the spans that are part of one, and what is part of those."""
    for span in spans:
        if (span.parent and span.parent.span_id) == parent:
            notes = [event.name for event in span.events]
            print("  " * depth + span.name, *notes, sep="  ")
            show(span.context.span_id if span.context is not None else None, spans, depth + 1)


if __name__ == "__main__":
    app.run()
    made = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
    show(None, made)
    print(f"traces: {len({span.context.trace_id for span in made if span.context is not None})}")
