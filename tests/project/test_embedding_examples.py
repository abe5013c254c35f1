"""The examples of applications in web servers and notebooks do what their page says."""

from __future__ import annotations

import asyncio
import importlib.util
import runpy
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import nbformat
import pytest
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application
from nbclient import NotebookClient

from spa_dat import DistributedApplication, Message
from spa_dat.errors import RemoteError
from spa_dat.runtime.application._application import runs_of
from support.waiting import eventually

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def loaded(name: str, patch: pytest.MonkeyPatch) -> ModuleType:
    """An example as a module of its own, so that each test has its own application."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its annotations are looked up there.
    patch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def fail(app: DistributedApplication, error: Exception) -> None:
    """What a bus does that is lost for good."""
    run = runs_of(app).current
    assert run is not None
    run.connections[0].surroundings.fatal(error)


@pytest.fixture
def signals() -> Iterator[list[int]]:
    """The signals to end that the process gets meanwhile."""
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    yield got
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def fastapi_app(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.delenv("SPA_DAT_URL", raising=False)
    return loaded("fastapi_app", monkeypatch)


@asynccontextmanager
async def served(module: ModuleType) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the example on FastAPI, between the start and the end of its lifespan."""
    web: Any = module.web
    async with (
        web.router.lifespan_context(web),
        httpx.AsyncClient(transport=httpx.ASGITransport(web), base_url="http://shop") as client,
    ):
        yield client


ORDER = {"item": "bolt", "amount": 3}


@pytest.mark.virtual
async def test_routes_of_fastapi_publish_and_ask(
    fastapi_app: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(fastapi_app) as client:
        done = await client.get("/readyz")
        assert (done.status_code, done.json()) == (200, {"ready": True})
        done = await client.post("/price", json=ORDER)
        assert (done.status_code, done.json()) == (200, {"total": 0.75})
        flow = {"X-Request-ID": "A1"}
        done = await client.post("/orders/anna", json=ORDER, headers=flow)
        assert done.status_code == 202
        await eventually(lambda: fastapi_app.shop.stats["messages.handled"] == 2)
    assert "anna orders 3 of bolt, flow A1\n" in capsys.readouterr().out
    # The lifespan has ended, and the application with it.
    assert fastapi_app.shop.health().state == "ended"


@pytest.mark.virtual
@pytest.mark.parametrize(
    "customer", ["%2B", "%23", "anna%2Fbert", "a" * 65, "{customer}", "%C3%BC"]
)
async def test_names_that_lead_to_other_topics_are_refused(
    fastapi_app: ModuleType, customer: str
) -> None:
    shop: DistributedApplication = fastapi_app.shop
    seen: list[str] = []

    @shop.application("#")
    async def everything(message: Message[bytes]) -> None:
        seen.append(message.topic)

    async with served(fastapi_app) as client:
        done = await client.post(f"/orders/{customer}", json=ORDER)
        assert done.status_code in (404, 422)
        await client.post("/orders/anna", json=ORDER)
        await eventually(lambda: seen)
    assert seen == ["shop/orders/anna"]


@pytest.mark.virtual
async def test_errors_of_the_bus_are_statuses_of_http(fastapi_app: ModuleType) -> None:
    shop: DistributedApplication = fastapi_app.shop
    answers: list[Any] = []

    @shop.application("shop/price", name="price", replace=True)
    async def price(payload: dict[str, Any]) -> Any:
        answer = answers.pop()
        if isinstance(answer, Exception):
            raise answer
        await asyncio.sleep(answer)
        return "nonsense"

    async with served(fastapi_app) as client:
        answers += [0, RemoteError("sold-out", "not for strangers"), 6]
        for status, error in ((504, "timeout"), (502, "sold-out"), (502, "bad-reply")):
            done = await client.post("/price", json=ORDER)
            assert (done.status_code, done.json()) == (status, {"error": error})
            assert "strangers" not in done.text
        # Not with json=, which refuses it.
        body, kind = r'{"item": "\ud800", "amount": 1}', {"Content-Type": "application/json"}
        done = await client.post("/price", content=body, headers=kind)
        assert (done.status_code, done.json()) == (422, {"error": "bad-text"})


@pytest.mark.virtual
async def test_a_full_outbox_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPA_DAT_URL", "memory://?queue=1")
    module = loaded("fastapi_app", monkeypatch)
    shop: DistributedApplication = module.shop
    full = asyncio.Event()

    @shop.application("shop/orders/+", name="take", replace=True, mailbox=1, window=1)
    async def take(payload: bytes) -> None:
        await full.wait()

    async with served(module) as client:
        for _ in range(10):
            done = await client.post("/orders/anna", json=ORDER)
            if done.status_code != 202:
                break
        assert (done.status_code, done.headers["Retry-After"]) == (503, "5")
        full.set()


@pytest.mark.virtual
async def test_a_server_whose_application_fails_is_ended(
    fastapi_app: ModuleType, signals: list[int]
) -> None:
    async with served(fastapi_app) as client:
        assert signals == []
        fail(fastapi_app.shop, ConnectionError("gone for good"))
        await eventually(lambda: signals == [signal.SIGTERM])
        # Until the server has ended.
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.post("/orders/anna", json=ORDER)).status_code == 503
    assert signals == [signal.SIGTERM]


@pytest.mark.virtual
async def test_a_server_that_ends_is_not_ended_once_more(
    fastapi_app: ModuleType, signals: list[int]
) -> None:
    async with served(fastapi_app):
        pass
    assert signals == []


async def test_handlers_of_aiohttp_post_and_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded("aiohttp_app", monkeypatch)
    web = module.make_web()
    plant: DistributedApplication = web[module.PLANT]
    traces: list[str | None] = []

    @plant.application("plant/+/temperature", name="traces")
    async def trace(message: Message[bytes]) -> None:
        traces.append(message.headers.get("traceparent"))

    async with TestClient(TestServer(web)) as client:
        url = "/machines/boiler"
        assert (await client.get(url)).status == 404
        sent = {"traceparent": TRACE}
        done = await client.post(url, json={"celsius": 61.5}, headers=sent)
        assert done.status == 202
        await eventually(lambda: plant.stats["messages.handled"] == 2)
        assert traces == [TRACE]
        done = await client.get(url)
        assert (done.status, await done.json()) == (200, {"celsius": 61.5})
        for path in ("/machines/%2B", "/machines/a%2Fb"):
            assert (await client.post(path, json={"celsius": 1})).status == 404
        deep = f'{{"more": {"[" * 100_000}'
        numbers = [f'{{"celsius": {text}}}' for text in ("NaN", "1e999", f"1{'0' * 400}", "null")]
        for data in ("", "{", "[]", b"\xff", deep, '{"celsius": "warm"}', *numbers):
            assert (await client.post(url, data=data)).status == 422
        odd = {"Content-Type": "application/json; charset=nonsense"}
        assert (await client.post(url, data='{"celsius": 1}', headers=odd)).status == 202
    assert plant.health().state == "ended"


async def test_a_server_of_aiohttp_ends_with_its_application(
    monkeypatch: pytest.MonkeyPatch, signals: list[int]
) -> None:
    module = loaded("aiohttp_app", monkeypatch)
    web = module.make_web()
    async with TestClient(TestServer(web)) as client:
        fail(web[module.PLANT], ConnectionError("gone for good"))
        await eventually(lambda: signals == [signal.SIGTERM])
        assert (await client.get("/machines/boiler")).status == 503


@pytest.mark.parametrize("fails", [False, True])
def test_the_exit_code_of_a_server_of_aiohttp_tells_of_the_failure(
    fails: bool, monkeypatch: pytest.MonkeyPatch, signals: list[int]
) -> None:
    async def serve(web: Application) -> None:
        (plant,) = (value for value in web.values() if isinstance(value, DistributedApplication))
        async with TestClient(TestServer(web)):
            if fails:
                fail(plant, ConnectionError("gone for good"))
                await eventually(lambda: signals == [signal.SIGTERM])

    monkeypatch.setattr("aiohttp.web.run_app", lambda web: asyncio.run(serve(web)))
    monkeypatch.setattr(sys, "argv", ["aiohttp_app.py"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / "aiohttp_app.py"), run_name="__main__")
    assert ended.value.code == int(fails)


async def test_cells_of_a_notebook_can_be_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook: Any = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    kernel = NotebookClient(notebook, timeout=60)
    make, define, ask, end = (c for c in notebook.cells if c.cell_type == "code")

    async def shown(cell: Any) -> str:
        """Run a cell, which raises if the cell does; returns what it shows."""
        await kernel.async_execute_cell(cell, notebook.cells.index(cell))
        return "".join(output.data["text/plain"] for output in cell.outputs)

    async with kernel.async_setup_kernel():
        assert [await shown(cell) for cell in (make, define, ask)] == ["", "", "'too hot'"]
        define.source = define.source.replace("80", "100")
        assert [await shown(cell) for cell in (define, ask)] == ["", "'fine'"]
        # Nobody has the earlier application any more, and it runs under the same name.
        assert [await shown(cell) for cell in (make, define, ask)] == ["", "", "'fine'"]
        assert [await shown(cell) for cell in (end, make, define)] == ["", "", ""]
