"""Errors of the Kafka library never reach the user as they are, and it never tells secrets."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Iterator

import aiokafka.errors as kafka
import pytest
from aiokafka.structs import BrokerMetadata

from spa_dat.errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    MessageTooLarge,
    NotAuthorised,
    PublishRefused,
    TransportError,
    UnknownTopic,
)
from spa_dat.transports import Identity, KafkaConfig, Surroundings
from spa_dat.transports.kafka import KafkaProvider
from spa_dat.transports.kafka._aiokafka_private import check_libraries
from spa_dat.transports.kafka._client_options import common_options
from spa_dat.transports.kafka._errors import (
    TRANSLATIONS,
    address_of,
    connect_problem,
    describe,
    error_for,
    publish_refusal,
    translate,
)


def test_the_most_specific_translation_comes_first() -> None:
    kinds = [kind for kind, _ in TRANSLATIONS]
    for place, kind in enumerate(kinds):
        assert not any(issubclass(kind, earlier) for earlier in kinds[:place]), kind


@pytest.mark.parametrize("kind", kafka.kafka_errors.values(), ids=lambda kind: kind.__name__)
def test_every_answer_of_a_cluster_becomes_an_error_in_one_line(
    kind: type[kafka.BrokerResponseError],
) -> None:
    error = translate(kind(), "looking")
    assert isinstance(error, TransportError)
    assert str(error).startswith("looking: ")
    assert "\n" not in str(error)
    assert isinstance(publish_refusal(kind(), "a/b"), TransportError)
    assert "'a/b'" in str(publish_refusal(kind(), "a/b"))


def test_a_timestamp_that_is_refused_names_the_limits_for_both_directions() -> None:
    told = str(publish_refusal(kafka.InvalidTimestampError(), "a"))
    assert "message.timestamp.before.max.ms" in told
    assert "message.timestamp.after.max.ms" in told


@pytest.mark.parametrize("code", [74, 89, 12_345])
def test_an_answer_that_nobody_has_a_name_for_is_told_with_its_number(code: int) -> None:
    error = error_for(code)
    assert f"[Error {code}]" in describe(error)
    assert f"[Error {code}]" in str(publish_refusal(error, "a/b"))


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (kafka.TopicAuthorizationFailedError("a"), NotAuthorised),
        (kafka.GroupAuthorizationFailedError("a"), NotAuthorised),
        (kafka.MessageSizeTooLargeError(), MessageTooLarge),
        (kafka.UnknownTopicOrPartitionError(), UnknownTopic),
        (kafka.CommitFailedError(), ConnectionLost),
        (kafka.KafkaConnectionError(), ConnectionLost),
        (OSError("broken"), ConnectionLost),
        (RuntimeError("odd"), ConnectionLost),
    ],
    ids=repr,
)
def test_what_is_raised_under_an_operation(cause: Exception, kind: type[Exception]) -> None:
    assert type(translate(cause, "looking")) is kind


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (kafka.TopicAuthorizationFailedError("a"), NotAuthorised),
        (kafka.RecordListTooLargeError(), MessageTooLarge),
        (kafka.InvalidTopicError(), UnknownTopic),
        (kafka.InvalidTimestampError(), PublishRefused),
        (kafka.PolicyViolationError(), PublishRefused),
        (kafka.UnknownError(), PublishRefused),
    ],
    ids=repr,
)
def test_a_refused_publish(cause: Exception, kind: type[Exception]) -> None:
    assert type(publish_refusal(cause, "a")) is kind


@pytest.mark.parametrize(
    ("cause", "kind", "final"),
    [
        (kafka.SaslAuthenticationFailed(), NotAuthorised, True),
        (kafka.UnsupportedSaslMechanismError(), NotAuthorised, True),
        (kafka.ClusterAuthorizationFailedError(), NotAuthorised, True),
        (kafka.KafkaConnectionError("closed"), ConnectFailed, False),
        (ConnectionRefusedError(111, "refused"), ConnectFailed, False),
        (socket.gaierror(-2, "Name or service not known"), ConnectFailed, False),
        (TimeoutError(), ConnectFailed, False),
        (ssl.SSLCertVerificationError("bad certificate"), ConnectFailed, True),
        (ConnectionLost("gone"), ConnectionLost, False),
        (UnknownTopic("missing"), UnknownTopic, True),
        (ConfigurationError("wrong"), ConfigurationError, True),
        (RuntimeError("unexpected"), ConnectFailed, False),
    ],
    ids=repr,
)
def test_a_failed_attempt_says_whether_trying_again_may_help(
    cause: Exception, kind: type[Exception], final: bool
) -> None:
    problem = connect_problem(cause, "kafka://host:9092", "ann")
    assert type(problem.error) is kind
    assert problem.final is final
    if problem.error is not cause:
        assert "kafka://host:9092" in str(problem.error)


def test_who_was_refused_is_named() -> None:
    for user, who in (("ann", "user 'ann'"), (None, "without a user name")):
        problem = connect_problem(kafka.SaslAuthenticationFailed("secret"), "kafka://h", user)
        assert who in str(problem.error)
        assert "secret" not in str(problem.error)


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (socket.gaierror(-2, "Name or service not known"), "unknown host"),
        (ConnectionRefusedError(111, "x"), "Connection refused"),
        (TimeoutError(), "no answer in time"),
        (kafka.KafkaError("a\n   b"), "KafkaError: a b"),
        (kafka.KafkaConnectionError("Connection at h:1 closed"), "Connection at h:1 closed"),
        (ConnectionResetError(), "the broker closed the connection"),
        (kafka.GroupAuthorizationFailedError("app.h"), "not authorised for the group 'app.h'"),
        (kafka.KafkaError(), "KafkaError"),
        (ValueError(), "ValueError"),
    ],
    ids=repr,
)
def test_causes_are_described_in_one_line(cause: Exception, text: str) -> None:
    assert describe(cause).startswith(text)


@pytest.fixture
def library_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("aiokafka")
    inner = logging.getLogger("aiokafka.conn")
    levels = logger.level, inner.level
    yield logger
    logger.setLevel(levels[0])
    inner.setLevel(levels[1])


def test_the_library_never_logs_at_debug(library_logger: logging.Logger) -> None:
    library_logger.setLevel(logging.DEBUG)
    inner = logging.getLogger("aiokafka.conn")
    inner.setLevel(logging.DEBUG)
    common_options(KafkaConfig(), "app")
    assert library_logger.level == logging.INFO
    assert inner.getEffectiveLevel() == logging.INFO
    library_logger.setLevel(logging.WARNING)
    common_options(KafkaConfig(), "app")
    assert library_logger.level == logging.WARNING
    library_logger.setLevel(logging.NOTSET)
    common_options(KafkaConfig(), "app")
    assert library_logger.level == logging.CRITICAL


def test_options_of_clients_follow_the_configuration() -> None:
    config = KafkaConfig(
        "h1:1,h2",
        request_timeout=2.5,
        topic_refresh=0.5,
        backoff_min=0.05,
        username="ann",
        password="hush",
        allow_plain_password=True,
        sasl_mechanism="SCRAM-SHA-512",
    )
    options = common_options(config, "app.0")
    assert options == {
        "bootstrap_servers": ["h1:1", "h2:9092"],
        "client_id": "app.0",
        "request_timeout_ms": 2_500,
        "metadata_max_age_ms": 500,
        "retry_backoff_ms": 50,
        "security_protocol": "SASL_PLAINTEXT",
        "ssl_context": None,
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "ann",
        "sasl_plain_password": "hush",
    }
    plain = common_options(KafkaConfig(), "x")
    assert plain["security_protocol"] == "PLAINTEXT"
    secure = common_options(KafkaConfig(tls=True, tls_insecure_skip_verification=True), "x")
    assert secure["security_protocol"] == "SSL"
    assert secure["ssl_context"].verify_mode is ssl.CERT_NONE
    both = common_options(KafkaConfig(tls=True, username="a", password="b"), "x")
    assert both["security_protocol"] == "SASL_SSL"
    assert both["ssl_context"].verify_mode is ssl.CERT_REQUIRED
    assert both["ssl_context"].check_hostname


async def test_a_library_that_lacks_an_inner_part_is_refused_with_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider = KafkaProvider(KafkaConfig())
    surroundings = Surroundings(Identity("app"))
    provider.open(surroundings)
    check_libraries.cache_clear()
    monkeypatch.delattr("aiokafka.client.AIOKafkaClient._on_connection_closed")
    with pytest.raises(ConfigurationError, match=r"aiokafka 0\.14.*_on_connection_closed.*install"):
        provider.open(surroundings)


@pytest.mark.parametrize("name", ["snappy", "lz4", "zstd"])
async def test_a_compression_that_is_not_installed_is_a_wrong_configuration(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(f"aiokafka.codec.has_{name}", lambda: False)
    provider = KafkaProvider(KafkaConfig(compression=name))
    with pytest.raises(ConfigurationError, match=rf"compression='{name}'.*cramjam"):
        provider.open(Surroundings(Identity("app")))


def test_what_a_broker_advertises_is_on_one_line_and_short() -> None:
    assert address_of(BrokerMetadata(1, "kafka.local", 9092, None)) == "kafka.local:9092"
    shown = address_of(BrokerMetadata(1, "a\nb" + "c" * 30_000, 9092, None))
    assert shown.startswith("a\\nbc")
    assert len(shown) < 270
