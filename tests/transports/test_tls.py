"""TLS contexts, and the files that they are made of."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from spa_dat.errors import ConfigurationError
from spa_dat.transports._broker_config import BrokerConfig
from spa_dat.transports._connect_failures import describe_failure, is_wrong_setup
from spa_dat.transports._tls import tls_context
from spa_dat.transports.kafka import KafkaConfig
from spa_dat.transports.mqtt import MqttConfig


def made(folder: Path) -> dict[str, Any]:
    """Write an authority and a certificate; return the options that name them."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate = authority.issue_cert("client@example.org")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "client.pem"))
    return {"tls_ca": str(folder / "ca.pem"), "tls_cert": str(folder / "client.pem")}


def authorities(config: BrokerConfig) -> list[object]:
    context = tls_context(config)
    assert context is not None
    return [entry["serialNumber"] for entry in context.get_ca_certs()]


@pytest.mark.parametrize("kind", [MqttConfig, KafkaConfig])
def test_files_are_read_again_only_when_they_change(
    tmp_path: Path, kind: type[MqttConfig | KafkaConfig]
) -> None:
    config = kind(tls=True, **made(tmp_path))
    first = tls_context(config)
    assert first is not None
    assert tls_context(config) is first
    assert first.verify_mode is ssl.CERT_REQUIRED
    assert first.check_hostname
    before = authorities(config)
    made(tmp_path)
    assert tls_context(config) is not first
    assert authorities(config) != before


def test_the_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    options = made(tmp_path)
    Path(options["tls_cert"]).unlink()
    with pytest.raises(ConfigurationError) as caught:
        tls_context(MqttConfig(tls=True, **options))
    assert "client.pem" in str(caught.value)
    assert "ca.pem" not in str(caught.value)


@pytest.mark.parametrize("option", ["tls_ca", "tls_cert"])
def test_a_file_that_is_being_written_is_named(tmp_path: Path, option: str) -> None:
    options = made(tmp_path)
    file = Path(options[option])
    file.write_bytes(file.read_bytes()[: 400 if option == "tls_cert" else 200])
    with pytest.raises(ConfigurationError, match="incomplete") as caught:
        tls_context(MqttConfig(tls=True, **options))
    named = [path for path in options.values() if path in str(caught.value)]
    assert named == [options[option]]


def test_a_link_to_other_files_counts_as_a_change(tmp_path: Path) -> None:
    """As with secrets that Kubernetes mounts."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        made(tmp_path / name)
    link = tmp_path / "current"
    link.symlink_to("old")
    config = MqttConfig(tls=True, tls_ca=str(link / "ca.pem"))
    before = authorities(config)
    (tmp_path / "next").symlink_to("new")
    os.replace(tmp_path / "next", link)
    assert authorities(config) != before


def test_a_file_that_is_gone_is_an_error_although_it_was_there(tmp_path: Path) -> None:
    config = MqttConfig(tls=True, **made(tmp_path))
    tls_context(config)
    (tmp_path / "client.pem").unlink()
    with pytest.raises(ConfigurationError, match=r"client\.pem.*No such file"):
        tls_context(config)


def test_what_is_skipped_by_one_configuration_is_not_by_another(tmp_path: Path) -> None:
    options = made(tmp_path)
    open_ = tls_context(MqttConfig(tls=True, tls_insecure_skip_verification=True, **options))
    strict = tls_context(MqttConfig(tls=True, **options))
    assert open_ is not None
    assert strict is not None
    assert (open_.verify_mode, strict.verify_mode) == (ssl.CERT_NONE, ssl.CERT_REQUIRED)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "requires a certificate from its clients"),
        ("TLSV1_ALERT_UNKNOWN_CA", "does not know the authority"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "our certificate (tls_cert) has expired"),
        ("SSLV3_ALERT_CERTIFICATE_REVOKED", "has been revoked"),
        ("SSLV3_ALERT_BAD_CERTIFICATE", "does not accept our certificate, or requires one"),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", "requires a certificate from its clients (tls_cert), or"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", "does not speak TLS 1.2 or newer"),
        ("WRONG_VERSION_NUMBER", "does not speak TLS"),
        ("SOMETHING_ELSE", "TLS failed: SOMETHING_ELSE"),
    ],
)
def test_what_tls_reports_is_told_in_words(reason: str, words: str) -> None:
    error = ssl.SSLError(1, "[SSL] some text (_ssl.c:1)")
    error.reason = reason
    assert words in describe_failure(error)
    assert reason in describe_failure(error)
    assert is_wrong_setup(error)


def test_a_connection_that_ends_within_the_handshake_may_come_about_later() -> None:
    error = ssl.SSLEOFError(8, "EOF occurred in violation of protocol")
    assert "during the TLS handshake" in describe_failure(error)
    assert not is_wrong_setup(error)
