"""The files of the example deployment fit together, the application, and the command line."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from spa_dat import DistributedApplication, SocketProviderFactory
from spa_dat.cli._main import _commands
from spa_dat.runtime.application._application import runs_of
from spa_dat.testing import Mosquitto
from support.command import Command
from support.waiting import eventually

pytestmark = pytest.mark.repository

FOLDER = Path(__file__).parent.parent.parent / "examples" / "deployment"
MANIFESTS = sorted((FOLDER / "kubernetes").glob("*.yaml"))
# A process that does not stop is killed after stop_timeout and these.
REST = 25
NEEDED = {
    "Service": ["spec.selector"],
    "PodDisruptionBudget": ["spec.selector.matchLabels"],
    "StatefulSet": ["spec.serviceName", "spec.replicas", "spec.selector.matchLabels"],
    "Deployment": ["spec.selector.matchLabels"],
    "ScaledObject": ["spec.scaleTargetRef.name", "spec.triggers"],
}
API = {
    "Service": "v1",
    "PodDisruptionBudget": "policy/v1",
    "StatefulSet": "apps/v1",
    "Deployment": "apps/v1",
    "ScaledObject": "keda.sh/v1alpha1",
}


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def of_kind(path: Path, *kinds: str) -> Any:
    (found,) = [document for document in documents(path) if document["kind"] in kinds]
    return found


def workload(path: Path) -> Any:
    return of_kind(path, "StatefulSet", "Deployment")


def container(path: Path) -> Any:
    (found,) = workload(path)["spec"]["template"]["spec"]["containers"]
    return found


def looked_up(document: Any, path: str) -> Any:
    for name in path.split("."):
        document = document[name]
    return document


def image() -> dict[str, str]:
    """The instructions of the Containerfile; those that are there once."""
    text = re.sub(r"\\\n", " ", (FOLDER / "Containerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: rest for name, _, rest in (line.partition(" ") for line in lines)}


def commands() -> list[list[str]]:
    """Those of the image and of the manifests, each once."""
    found = [json.loads(image()["CMD"]), *(container(path)["command"] for path in MANIFESTS)]
    return [command for number, command in enumerate(found) if command not in found[:number]]


def environments() -> Iterator[dict[str, Any]]:
    """The environment variables that containers of the application get."""
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    for service in compose["services"].values():
        if service["image"] == "ledger":
            yield service["environment"]
    for path in MANIFESTS:
        yield {one["name"]: one for one in container(path)["env"]}


@pytest.fixture(scope="module")
def ledger() -> ModuleType:
    """The application's module."""
    spec = importlib.util.spec_from_file_location("deployed_ledger", FOLDER / "ledger.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SPA_DAT_URL", raising=False)
        patch.delenv("SPA_DAT_INSTANCE", raising=False)
        # Its annotations are looked up there.
        patch.setitem(sys.modules, "deployed_ledger", module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def app(ledger: ModuleType) -> DistributedApplication:
    found = ledger.app
    assert isinstance(found, DistributedApplication)
    return found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_have_what_their_kinds_need(path: Path) -> None:
    for document in documents(path):
        kind = document["kind"]
        assert document["apiVersion"] == API[kind]
        assert document["metadata"]["name"] == "ledger"
        for needed in NEEDED[kind]:
            assert looked_up(document, needed), f"{kind}: {needed}"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_what_selects_pods_finds_them(path: Path) -> None:
    labels = workload(path)["spec"]["template"]["metadata"]["labels"]
    for document in documents(path):
        if document["kind"] == "ScaledObject":
            target = document["spec"]["scaleTargetRef"]
            assert target.get("kind", "Deployment") == workload(path)["kind"]
            assert target["name"] == workload(path)["metadata"]["name"]
            continue
        selector = document["spec"]["selector"]
        assert selector.get("matchLabels", selector).items() <= labels.items()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_volumes_are_there_and_the_ledger_is_on_one(path: Path) -> None:
    spec = workload(path)["spec"]
    volumes = {volume["name"] for volume in spec["template"]["spec"].get("volumes", [])}
    volumes |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
    mounts = {mount["name"]: mount["mountPath"] for mount in container(path)["volumeMounts"]}
    assert mounts.keys() == volumes
    (file,) = [one["value"] for one in container(path)["env"] if one["name"] == "LEDGER_FILE"]
    assert Path(file).parent == Path(mounts["data"])


def test_all_containers_run_without_rights() -> None:
    assert image()["USER"] == "10001:10001"
    for path in MANIFESTS:
        pod = workload(path)["spec"]["template"]["spec"]["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert (pod["runAsUser"], pod["runAsGroup"]) == (10001, 10001)
        rights = container(path)["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        resources = container(path)["resources"]
        assert resources["requests"].keys() == resources["limits"].keys() == {"cpu", "memory"}


@pytest.mark.parametrize("command", commands(), ids=shlex.join)
def test_commands_are_ones_that_the_command_line_knows(command: list[str]) -> None:
    assert isinstance(command, list), "a shell would not pass signals on"
    program, name, *arguments = command
    assert (program, name) == ("spa-dat", "run")
    # Refuses options that do not exist, and their values.
    with _commands.commands["run"].make_context("run", arguments) as context:
        assert context.params["target"] == image()["COPY"].split()[0]
        assert context.params["workers"] >= 1


def test_environment_variables_are_ones_that_are_read() -> None:
    options = _commands.commands["run"].params
    read = {str(option.envvar) for option in options if getattr(option, "envvar", None)}
    serving = importlib.import_module("spa_dat.cli._run_in_process")
    read |= {serving._INSTANCE}
    assert read == {"SPA_DAT_URL", "SPA_DAT_INSTANCE", "SPA_DAT_LOG_FORMAT"}
    read |= set(re.findall(r'environ\.get\("(\w+)"', (FOLDER / "ledger.py").read_text()))
    for environment in environments():
        assert environment.keys() <= read
        # Without a name all would be instance 0.
        assert environment.keys() >= {"SPA_DAT_URL", "SPA_DAT_INSTANCE"}
    assert image()["ENV"].partition("=")[0] in read


def test_instances_are_the_names_of_pods_and_the_address_is_secret() -> None:
    for path in MANIFESTS:
        told = {one["name"]: one for one in container(path)["env"]}
        source = told["SPA_DAT_INSTANCE"]["valueFrom"]
        assert source == {"fieldRef": {"fieldPath": "metadata.name"}}
        secret = told["SPA_DAT_URL"]["valueFrom"]["secretKeyRef"]
        # The comment says how it is made.
        text = path.read_text(encoding="utf-8")
        assert f"create secret generic {secret['name']} " in text
        (url,) = re.findall(rf"--from-literal={secret['key']}='(.*)'", text)
        bus = path.stem
        config = SocketProviderFactory.config_from_url(url)
        assert type(config).__name__.lower().startswith(bus)
    assert workload(FOLDER / "kubernetes" / "mqtt.yaml")["kind"] == "StatefulSet"


def test_stopping_may_take_as_long_as_it_does(app: DistributedApplication) -> None:
    least = runs_of(app).settings.stop_timeout + REST
    for path in MANIFESTS:
        pod = workload(path)["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > least
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    for service in compose["services"].values():
        if service["image"] == "ledger":
            assert float(service["stop_grace_period"].removesuffix("s")) > least


def test_what_scales_looks_at_the_group_and_the_topic_of_the_application(
    app: DistributedApplication,
) -> None:
    path = FOLDER / "kubernetes" / "kafka.yaml"
    (spec,) = runs_of(app).specs
    scaled = of_kind(path, "ScaledObject")["spec"]
    (trigger,) = scaled["triggers"]
    assert trigger["type"] == "kafka"
    told = trigger["metadata"]
    # KEDA wants texts.
    assert {type(value) for value in told.values()} == {str}
    (pattern,) = spec.filters
    assert told["topic"] == pattern.pattern.replace("/", ".")
    assert told["consumerGroup"] == f"{app.name}.{spec.name}"
    assert spec.options.deliver == "share"
    text = path.read_text(encoding="utf-8")
    assert f"--create --topic {told['topic']} --partitions {scaled['maxReplicaCount']} " in text
    assert scaled["minReplicaCount"] <= scaled["maxReplicaCount"]
    assert "replicas" not in workload(path)["spec"]


def test_the_services_of_compose_belong_together() -> None:
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    instances: dict[str, set[str]] = {}
    for name, service in services.items():
        (profile,) = service["profiles"]
        for other in service.get("depends_on", []):
            assert services[other]["profiles"] == [profile]
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (FOLDER / source).is_file(), name
        if service["image"] == "ledger":
            assert (FOLDER / service["build"]["dockerfile"]).is_file()
            instances.setdefault(profile, set()).add(service["environment"]["SPA_DAT_INSTANCE"])
            url = re.fullmatch(r"\$\{SPA_DAT_URL:-(.*)\}", service["environment"]["SPA_DAT_URL"])
            assert url is not None
            config = SocketProviderFactory.config_from_url(url[1])
            assert type(config).__name__.lower().startswith(profile)
            assert re.search(rf"\b{service['depends_on'][0]}\b", url[1])
    assert instances == {"mqtt": {"east", "west"}, "kafka": {"east", "west"}}


@pytest.mark.mosquitto
@pytest.mark.slow
@pytest.mark.parametrize("command", commands(), ids=shlex.join)
async def test_commands_of_containers_run_the_application(
    command: list[str], own_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    (tmp_path / "ledger.py").write_text((FOLDER / "ledger.py").read_text(encoding="utf-8"))
    file = tmp_path / "written"
    # One of its own: the shared subscription of another test's copy would take its turn.
    mosquitto = own_mosquitto()
    environment = {
        "SPA_DAT_URL": mosquitto.url,
        "SPA_DAT_INSTANCE": "deployed",
        "LEDGER_FILE": str(file),
    }
    workers = int(command[command.index("--workers") + 1])
    with Command(tmp_path, *command[1:], environment=environment) as running:
        await running.says("application 'ledger' instance 'deployed-.*' has started", workers)
        async with DistributedApplication(mosquitto.url) as meters:
            reading = {"machine": "boiler", "number": 7, "celsius": 61.5}
            await meters.socket().publish("plant/readings", reading)
            await eventually(lambda: file.read_text().startswith("boiler 7 deployed-"))
        running.signal(signal.SIGTERM)
        assert await running.end() == 0


@pytest.mark.mosquitto
async def test_the_settings_of_mosquitto_are_ones_that_it_knows(
    own_mosquitto: Callable[..., Mosquitto],
) -> None:
    lines = (FOLDER / "mosquitto.conf").read_text(encoding="utf-8").splitlines()
    settings = [line for line in lines if line and not line.startswith("#")]
    listener = [line for line in settings if line.startswith(("listener", "allow_anonymous"))]
    place = [line for line in settings if line.startswith("persistence_location")]
    assert listener == ["listener 1883", "allow_anonymous true"]
    assert place == ["persistence_location /mosquitto/data/"]
    broker = own_mosquitto(extra=[line for line in settings if line not in (*listener, *place)])
    assert "Error" not in broker.log
    page = (FOLDER.parent.parent / "docs" / "mqtt.md").read_text(encoding="utf-8")
    promised = page.partition("is over 1,000 queued messages. Set")[2].split("```")[1].split("\n")
    assert {line for line in promised if line} - {"persistence_location /var/lib/mosquitto/"} < set(
        settings
    )


@pytest.mark.mosquitto
async def test_a_session_that_is_removed_as_the_page_says_gets_nothing_any_more(
    own_mosquitto: Callable[..., Mosquitto],
) -> None:
    """What would be dealt out to an instance that is gone goes to the one that is left."""
    page = (FOLDER.parent.parent / "docs" / "deploying.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    broker = own_mosquitto()
    code = told.replace('"mosquitto.example.org", 1883', f'"{broker.host}", {broker.port}')
    assert code != told
    handled: list[int] = []

    def instance(name: str) -> DistributedApplication:
        one = DistributedApplication(broker.url, name="ledger", instance=name)

        @one.application("plant/readings", deliver="share")
        async def readings(number: int) -> None:
            handled.append(number)

        return one

    async with instance("east"), DistributedApplication(broker.url) as meters:
        async with instance("west-1"):
            pass
        await asyncio.to_thread(exec, code, {})
        for number in range(10):
            await meters.socket().publish("plant/readings", number)
        await eventually(lambda: handled == list(range(10)))
