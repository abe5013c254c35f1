"""``spa-dat acl``: the rules it prints, and applications that live with them on real brokers."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spa_dat import DistributedApplication, KafkaConfig, SocketProviderFactory
from spa_dat._pytest import require
from spa_dat.cli._main import main
from spa_dat.errors import NotAuthorised
from spa_dat.runtime.application._application import runs_of
from spa_dat.testing import Kafka, Mosquitto
from support.kafka_bus import create, new_prefix
from support.left_states import KEYS, LeftStates
from support.waiting import eventually

SOURCE = """
import sys
from spa_dat import DistributedApplication, RetryPolicy, Socket

app = DistributedApplication("mqtt://broker", name="plant")
done = []
refused = []

@app.application("plant/{machine}/temperature", retry=RetryPolicy(attempts=1))
async def watch(celsius: float, machine: str, socket: Socket) -> None:
    if celsius < -273:
        raise ValueError("below absolute zero")
    await socket.publish(f"alarm/{machine}", celsius)

@app.application("plant-double", deliver="share")
async def double(number: int) -> int:
    return 2 * number

@app.application("alarm/boiler")
async def ask(celsius: float, socket: Socket) -> None:
    done.append(await socket.request("plant-double", int(celsius), reply=int))
    try:
        await socket.publish("elsewhere", 1)
    except Exception as error:
        refused.append(error)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / f"app_{tmp_path.name.replace('-', '_')}.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def shown(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    monkeypatch.delenv("SPA_DAT_URL", raising=False)

    def run(*options: str, code: int = 0) -> list[str]:
        assert main(["acl", f"{file}:app", *options]) == code
        out, errors = capsys.readouterr()
        return (out if code == 0 else errors).splitlines()

    return run


def test_rules_for_mosquitto(shown: Callable[..., list[str]]) -> None:
    assert shown("--publish", "alarm/{machine}", "--publish", "alarm/x", "--user", "ann") == [
        "# plant on mqtt://broker:1883: lines of an acl_file of Mosquitto.",
        "user ann",
        "topic read alarm/boiler",
        "topic read plant-double",
        "topic read plant/+/temperature",
        "topic write alarm/+",
        "topic read _spa/reply/plant/#",
        "topic write _spa/reply/#",
        "topic readwrite _spa/dead-letter/plant/#",
        "# Replies are allowed in the inboxes of applications only (_spa/reply/). If requesters",
        "# name other topics, give the application or the actor reply_topics=.",
    ]


def test_rules_for_kafka(shown: Callable[..., list[str]]) -> None:
    url = "kafkas://it's:secret@k1,k2?prefix=p."
    lines = shown("--url", url, "--publish", "a/#", "--subscribe", "#")
    assert [line for line in lines if line.startswith("# The rule for '#' also lets")]
    command = "kafka-acls.sh --bootstrap-server k1:9092 --add --allow-principal"
    assert lines[0].startswith("# plant on kafkas://k1:9092,k2:9092?prefix=p.: commands")
    assert "secret" not in "".join(lines)
    rules = [line.removeprefix(command) for line in lines[1:] if line[0] != "#"]
    assert {shlex.split(rule)[0] for rule in rules} == {"User:it's"}
    assert [
        " ".join(shlex.split(rule)[2:]).replace("--resource-pattern-type ", "") for rule in rules
    ] == [
        "Read --topic p. prefixed",
        "Read --topic p.alarm.boiler",
        "Read --topic p.plant-double",
        "Read --topic p.plant. prefixed",
        "Write --topic p.a",
        "Write --topic p.a. prefixed",
        "Read --group p.plant. prefixed",
        "Read --topic p._spa.reply.plant",
        "Write --topic p._spa.reply.plant",
        "Create --topic p._spa.reply.plant",
        "Read --topic p._spa.dead-letter.plant",
        "Write --topic p._spa.dead-letter.plant",
        "Create --topic p._spa.dead-letter.plant",
        "Write --topic p._spa.reply. prefixed",
    ]


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("mqtt://h", "topic write _spa/reply/#"),
        ("kafka://h?prefix=p.", "--operation Write --topic p._spa.reply.ephemeral"),
    ],
)
def test_who_answers_no_requests_may_answer_those_who_replay_its_dead_letters(
    file: Path, shown: Callable[..., list[str]], url: str, rule: str
) -> None:
    file.write_text(SOURCE.replace("-> int:", "-> None:"))
    assert any(line.endswith(rule) for line in shown("--url", url))


def with_transactions() -> str:
    source = SOURCE.replace("mqtt://broker", "kafka://broker")
    return source.replace('deliver="share"', "exactly_once=True")


def test_rules_for_kafka_have_the_ids_of_transactions(
    file: Path, shown: Callable[..., list[str]]
) -> None:
    wanted = "--operation Write --transactional-id p.plant. --resource-pattern-type prefixed"
    url = "kafka://k1?prefix=p."
    file.write_text(with_transactions())
    assert sum(line.endswith(wanted) for line in shown("--url", url)) == 1


KEYED = """
from spa_dat import DistributedApplication, KafkaConfig, KafkaTopic

topics = {"plant/{machine}": KafkaTopic("plant", key="machine")}
app = DistributedApplication(KafkaConfig("k1", topics=topics), name="plant")

@app.application("plant/{machine}", per="machine", state=dict[str, int], durable=True)
async def keep(payload: bytes) -> None: ...
"""


def test_rules_for_kafka_have_the_topics_of_states(
    file: Path, shown: Callable[..., list[str]]
) -> None:
    file.write_text(KEYED)
    lines = shown()
    assert [line.partition("--operation ")[2] for line in lines if "_spa.state" in line] == [
        f"{operation} --topic _spa.state.plant. --resource-pattern-type prefixed"
        for operation in ("Read", "Write", "Create", "DescribeConfigs")
    ]
    assert any("--transactional-id plant." in line for line in lines)


@pytest.mark.parametrize("whose", ["bus", "actor"])
def test_rules_for_kafka_have_the_reply_topics_of_requests_to_0_4_0(
    file: Path, shown: Callable[..., list[str]], whose: str
) -> None:
    if whose == "actor":
        file.write_text(SOURCE.replace('"alarm/boiler"', '"alarm/boiler", wire="spa-dat"'))
    more = "&wire=spa-dat" if whose == "bus" else ""
    wanted = [
        f"{operation} --topic p._spa.reply.plant- --resource-pattern-type prefixed"
        for operation in ("Read", "Create", "Delete")
    ]
    lines = shown("--url", f"kafka://k1?prefix=p.{more}")
    assert [line.partition("--operation ")[2] for line in lines if "reply.plant-" in line] == wanted
    assert any("named plant-" in line for line in lines)
    # Where it may create no topics it makes no such requests.
    lines = shown("--url", f"kafka://k1?prefix=p.&create_topics=never{more}")
    assert not [line for line in lines if "reply.plant-" in line]


@pytest.mark.parametrize(
    ("pattern", "reaches"),
    [("#", True), ("+/#", True), ("+/+/+/+", True), ("+/+/+/+/+", True), ("+/+", False)],
)
def test_a_filter_that_reaches_into_what_is_of_others_is_named(
    shown: Callable[..., list[str]], pattern: str, reaches: bool
) -> None:
    lines = shown("--subscribe", pattern)
    assert any(line.startswith(f"# The rule for '{pattern}' also") for line in lines) == reaches


def test_what_cannot_be_seen_is_said(shown: Callable[..., list[str]]) -> None:
    assert shown()[-1].startswith("# What its handlers publish cannot be seen")
    (line,) = [line for line in shown("--url", "memory://") if "no rules" in line]
    assert line == "# plant on memory://: no rules."


def test_what_is_published_on_another_bus_is_said_to_be_left_out(
    file: Path, shown: Callable[..., list[str]]
) -> None:
    other = 'socket_provider=SocketProviderFactory.from_url("mqtt://other")'
    source = SOURCE.replace("import Distr", "import SocketProviderFactory, Distr")
    file.write_text(source.replace('"alarm/boiler"', f'"alarm/boiler", {other}'))
    lines = shown("--publish", "plant-double")
    assert "# plant on mqtt://other:1883: lines of an acl_file of Mosquitto." in lines
    assert lines[-2].startswith("# What its handlers publish on this bus cannot be seen")
    assert sum(line.startswith("# What its handlers publish") for line in lines) == 1


def test_a_filter_that_is_none_is_named(shown: Callable[..., list[str]]) -> None:
    (line,) = shown("--publish", "a/#/b", code=2)
    assert "'a/#/b'" in line


def test_a_user_that_would_begin_another_rule_is_refused(shown: Callable[..., list[str]]) -> None:
    (line,) = shown("--user", "ann\ntopic readwrite #", code=2)
    assert "--user 'ann" in line
    assert "leave it out" in line


def test_an_application_without_a_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "nameless_for_acl.py"
    file.write_text(
        "from spa_dat import DistributedApplication\napp = DistributedApplication('memory://')\n"
    )
    assert main(["acl", f"{file}:app"]) == 2
    assert "give it a name" in capsys.readouterr().err


async def lives(file: Path, url: str, publish: Callable[[str, str], Any]) -> None:
    """Run the application on a bus with rules, and see that it can do all that it has to."""
    module = runpy.run_path(str(file))
    app: DistributedApplication = module["app"]
    assert runs_of(app).replace_provider(SocketProviderFactory.from_url(url))
    async with app:
        await publish("plant/boiler/temperature", "21.0")
        await eventually(lambda: module["refused"], 60.0)
        assert module["done"] == [42]
        assert isinstance(module["refused"][0], NotAuthorised)
        await publish("plant/oven/temperature", "-300.0")
        await eventually(lambda: app.stats["dead_letters.stored"] == 1, 60.0)
        assert app.healthy, app.problems


@pytest.mark.mosquitto
async def test_an_application_can_live_with_the_rules_for_mosquitto(
    file: Path, shown: Callable[..., list[str]]
) -> None:
    require(Mosquitto)
    lines = shown("--publish", "alarm/+", "--publish", "plant-double", "--user", "ann")
    admin = "user admin\ntopic readwrite #\n"
    users = {"ann": "secret", "admin": "secret"}
    with Mosquitto(users=users, acl=admin + "\n".join(lines) + "\n") as broker:
        place = f"{broker.host}:{broker.port}"
        outside = DistributedApplication(f"mqtt://admin:secret@{place}")
        async with outside:
            await lives(file, f"mqtt://ann:secret@{place}", outside.socket().publish)


def grant(broker: Kafka, lines: list[str]) -> None:
    """Give ann the rights in the commands for an administrator."""
    for line in lines:
        found = re.search(r"--operation (\w+) --([\w-]+) (\S+)( --res.* prefixed)?$", line)
        if found is not None:
            name = found[3] + ("*" if found[4] else "")
            operation = re.sub("(?<=[a-z])(?=[A-Z])", "_", found[1]).upper()
            broker.grant("ann", operation, found[2].upper().replace("-", "_"), name)


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("wire", "once"), [("cloudevents", False), ("spa-dat", False), ("cloudevents", True)]
)
async def test_an_application_can_live_with_the_rules_for_kafka(
    file: Path, shown: Callable[..., list[str]], wire: str, once: bool
) -> None:
    require(Kafka)
    if once:
        file.write_text(with_transactions())
    prefix = new_prefix()
    with Kafka(sasl_users={"ann": "secret"}) as broker:
        for topic in ("plant.boiler.temperature", "plant.oven.temperature", "plant-double"):
            await create(broker.server, prefix + topic)
        for topic in ("alarm.boiler", "alarm.oven", "elsewhere"):
            await create(broker.server, prefix + topic)
        url = (
            f"kafka://ann:secret@{broker.host}:{broker.sasl_port}"
            f"?allow_plain_password=true&prefix={prefix}&wire={wire}"
        )
        grant(broker, shown("--url", url, "--publish", "alarm/+", "--publish", "plant-double"))
        outside = DistributedApplication(f"{broker.url}?prefix={prefix}")
        async with outside:
            await lives(file, url, outside.socket().publish)


COPIED = """
from spa_dat import DistributedApplication, KafkaConfig, KafkaTopic

topics = {"plant/{machine}": KafkaTopic("numbers", key="machine")}
app = DistributedApplication(KafkaConfig("k1", topics=topics), name="app")

@app.application("plant/{machine}", per="machine", state=dict[str, int], durable=True)
async def new(payload: bytes) -> None: ...
"""


@pytest.mark.kafka
async def test_whoever_runs_an_application_may_copy_its_states(
    file: Path, shown: Callable[..., list[str]]
) -> None:
    require(Kafka)
    file.write_text(COPIED)
    with Kafka(sasl_users={"ann": "secret"}) as broker:
        config = KafkaConfig(
            f"{broker.host}:{broker.sasl_port}",
            username="ann",
            password="secret",
            allow_plain_password=True,
        )
        left = LeftStates(broker.server, "", config)
        await left.fill()
        await left.grow()
        with pytest.raises(NotAuthorised):
            await left.copy()
        grant(broker, shown())
        assert (await left.copy()).written == len(KEYS)
