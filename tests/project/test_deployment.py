"""The files of the example deployment fit together, the application, and the command line."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from spa_dat import DistributedApplication, MqttConfig, SocketProviderFactory
from spa_dat.cli import _child_processes, _commands, _main
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.options import _admin_address
from spa_dat.testing import Mosquitto
from support.command import Command
from support.waiting import eventually

pytestmark = pytest.mark.repository

FOLDER = Path(__file__).parent.parent.parent / "examples" / "deployment"
MANIFESTS = sorted((FOLDER / "kubernetes").glob("*.yaml"))
# A process that does not stop is killed after stop_timeout and these.
REST = 25
UNIT = FOLDER / "systemd" / "ledger.service"
PROBES = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
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


def instructions() -> list[tuple[str, str]]:
    """Those of the Containerfile, with what they are given."""
    text = re.sub(r"\\\n", " ", (FOLDER / "Containerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def image() -> dict[str, str]:
    """The instructions of the Containerfile that are there once."""
    return dict(instructions())


def commands() -> list[list[str]]:
    """Those that run the application, each once."""
    found = [
        json.loads(image()["CMD"]),
        *(container(path)["command"] for path in MANIFESTS),
        shlex.split(unit()["ExecStart"][0].removeprefix("/opt/ledger/venv/bin/")),
    ]
    return [command for number, command in enumerate(found) if command not in found[:number]]


def unit() -> dict[str, list[str]]:
    """The settings of the service of systemd; some are there more than once."""
    settings: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


def workers_of(command: Sequence[str]) -> int:
    return int(command[command.index("--workers") + 1])


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def environments() -> Iterator[dict[str, Any]]:
    """The environment variables that containers of the application get."""
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    for service in compose["services"].values():
        if service["image"] == "ledger":
            yield service["environment"]
    for path in MANIFESTS:
        yield {one["name"]: one for one in container(path)["env"]}
    # Those in the file are what its comment says.
    given = re.search(r"ledger\.env +# (.*)", UNIT.read_text(encoding="utf-8"))
    assert given is not None
    pairs = [*unit()["Environment"], *given[1].split(", ")]
    yield dict(pair.partition("=")[::2] for pair in pairs)


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
    with _commands.commands.commands["run"].make_context("run", arguments) as context:
        assert list(context.params["targets"]) == image()["COPY"].split()[:1]
        assert context.params["workers"] >= 1


def test_environment_variables_are_ones_that_are_read() -> None:
    options = _commands.commands.commands["run"].params
    read = {str(option.envvar) for option in options if getattr(option, "envvar", None)}
    serving = importlib.import_module("spa_dat.cli._run_in_process")
    read |= {serving._INSTANCE}
    assert read == {"SPA_DAT_URL", "SPA_DAT_INSTANCE", "SPA_DAT_LOG_FORMAT"}
    read |= {_admin_address._ADDRESS, _admin_address.TOKEN_VARIABLE}
    read |= set(re.findall(r'environ\.get\("(\w+)"', (FOLDER / "ledger.py").read_text()))
    for environment in environments():
        assert environment.keys() <= read
        # Without a name all would be instance 0.
        assert environment.keys() >= {"SPA_DAT_URL", "SPA_DAT_INSTANCE"}
    given = {rest.partition("=")[0] for name, rest in instructions() if name == "ENV"}
    assert given == {"LEDGER_FILE", "SPA_DAT_ADMIN"} < read


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
            assert seconds(service["stop_grace_period"]) > least
    assert float(*unit()["TimeoutStopSec"]) > least


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
async def test_probes_of_a_kubelet_are_answered(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They come to the address of the pod, and have no token."""
    caplog.set_level("INFO")
    told = {one["name"]: one for one in container(path)["env"]}
    (port,) = container(path)["ports"]
    host, _, number = told["SPA_DAT_ADMIN"]["value"].rpartition(":")
    assert int(number) == port["containerPort"]
    secret = told["SPA_DAT_ADMIN_TOKEN"]["valueFrom"]["secretKeyRef"]
    text = path.read_text(encoding="utf-8")
    assert (
        f"create secret generic {secret['name']} \\\n#     --from-literal={secret['key']}=" in text
    )
    monkeypatch.setenv("SPA_DAT_ADMIN_TOKEN", "0123456789abcdef" * 2)
    monkeypatch.setenv("SPA_DAT_ADMIN", f"{host}:0")
    app = DistributedApplication("memory://", name="ledger")

    @app.application("plant/readings")
    async def readings(reading: bytes) -> None: ...

    async with app:
        (line,) = [r.getMessage() for r in caplog.records if "answers probes" in r.getMessage()]
        listening = int(line.rpartition(":")[2])
        for name, where in PROBES.items():
            get = container(path)[name]["httpGet"]
            assert get == {"path": where, "port": port["name"]}
            reader, writer = await asyncio.open_connection("127.0.0.1", listening)
            writer.write(f"GET {where} HTTP/1.1\r\nHost: 10.1.2.3:{number}\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            assert answer.startswith(b"HTTP/1.1 200 ")


def test_what_looks_whether_it_lives_waits_until_a_worker_is_replaced() -> None:
    for path in MANIFESTS:
        probe, command = container(path)["livenessProbe"], container(path)["command"]
        assert probe["periodSeconds"] * probe["failureThreshold"] > worker_timeout(command)
        # Its own timeout is what all of its attempts take together at the most.
        assert probe["timeoutSeconds"] < probe["periodSeconds"]
    options, command = health_checks()["image"]
    assert "--live" in command
    assert options["interval"] * options["retries"] > worker_timeout(json.loads(image()["CMD"]))


def worker_timeout(command: Sequence[str]) -> float:
    with _commands.commands.commands["run"].make_context("run", list(command[2:])) as context:
        return float(context.params["worker_timeout"])


def health_checks() -> dict[str, tuple[dict[str, float], list[str]]]:
    """That of the image, and that of the services of compose: times in seconds, and the command."""
    options, _, command = image()["HEALTHCHECK"].partition("CMD ")
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    given = compose["services"]["mqtt-east"]["healthcheck"]
    assert given["test"][0] == "CMD"
    times = re.findall(r"--([a-z-]+)=(\d+)", options)
    return {
        "image": ({name: float(value) for name, value in times}, json.loads(command)),
        "compose": (
            {name: seconds(value) for name, value in given.items() if name != "test"},
            given["test"][1:],
        ),
    }


@pytest.mark.parametrize("where", ["image", "compose"])
def test_health_checks_ask_all_workers_and_need_no_curl(where: str) -> None:
    options, (program, name, *arguments) = health_checks()[where]
    assert (program, name) == ("spa-dat", "health")
    workers = workers_of(json.loads(image()["CMD"]))
    with _commands.commands.commands["health"].make_context("health", arguments) as context:
        assert context.params["workers"] == workers
        # If none of them answers, it says so itself.
        assert options["timeout"] > context.params["timeout"] * workers
    assert ("ENV", "SPA_DAT_ADMIN=127.0.0.1:8085") in instructions()
    assert "'spa-dat[admin]" in image()["RUN"]


def test_the_service_of_systemd_is_as_its_program_needs_it() -> None:
    settings = unit()
    assert settings["Type"] == ["notify"]
    # SIGTERM to all of them would be the second one for the workers, which ends them at once.
    assert settings["KillMode"] == ["mixed"]
    assert settings["Restart"] == ["always"]
    assert settings["RestartPreventExitStatus"] == [str(_main._WRONG)]
    assert float(*settings["TimeoutStartSec"]) > MqttConfig().start_timeout
    assert float(*settings["WatchdogSec"]) > _child_processes._LONGEST_WAIT
    (file,) = [value for value in settings["Environment"] if value.startswith("LEDGER_FILE=")]
    assert file == f"LEDGER_FILE=/var/lib/{settings['StateDirectory'][0]}/ledger"


def test_systemd_knows_every_setting_of_the_service(tmp_path: Path) -> None:
    analyse = shutil.which("systemd-analyze")
    if analyse is None:
        pytest.skip("there is no systemd-analyze")
    copy = tmp_path / "ledger.service"
    text = UNIT.read_text(encoding="utf-8")
    # It looks whether the program is there.
    copy.write_text(text.replace("/opt/ledger/venv/bin/spa-dat", sys.executable), encoding="utf-8")
    for command in (
        ["verify", "--man=no", "--recursive-errors=no"],
        ["security", "--offline=true", "--threshold=20", "--no-pager"],
    ):
        done = subprocess.run(
            [analyse, *command, copy], capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


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
    workers = workers_of(command)
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
