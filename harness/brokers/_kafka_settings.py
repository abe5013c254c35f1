"""The configuration of a Kafka broker for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ._certificates import make_certificates

__all__ = ["SCRAM", "SETTINGS", "listener_settings", "sasl_settings", "tls_settings"]

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "inter.broker.listener.name": "PLAIN",
    "controller.listener.names": "CONTROLLER",
    "num.partitions": "1",
    "default.replication.factor": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "100",
    # A broker that was killed cannot rejoin before its session with the controller is over.
    "broker.heartbeat.interval.ms": "200",
    "broker.session.timeout.ms": "3000",
    # Nothing is written while nothing happens.
    "metadata.max.idle.interval.ms": "0",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "log.index.size.max.bytes": "1048576",
    "log.segment.delete.delay.ms": "1000",
    # A hundred years. Records with a time of long ago would be gone as soon as the broker looks, 30
    # seconds after its start and then every five minutes.
    "log.retention.hours": "876000",
}
"""A single small node that answers quickly."""
SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")
"""SASL mechanisms whose users are created when the data folder is formatted."""


def listener_settings(
    host: str, listeners: Mapping[str, tuple[str, int]], proxy_port: int
) -> dict[str, str]:
    """Return the settings of listeners, given by name with their protocol and port.

    For ``PROXIED`` the address of the proxy is advertised.
    """
    public = {name: port for name, (_, port) in listeners.items() if name != "CONTROLLER"}
    public["PROXIED"] = proxy_port
    return {
        "listeners": ",".join(f"{name}://{host}:{port}" for name, (_, port) in listeners.items()),
        "advertised.listeners": ",".join(
            f"{name}://{host}:{port}" for name, port in public.items()
        ),
        "listener.security.protocol.map": ",".join(
            f"{name}:{protocol}" for name, (protocol, _) in listeners.items()
        ),
    }


def sasl_settings(users: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of logins for ``SASL`` and ``TLS``; other listeners allow everything."""
    logins = " ".join(f'user_{name}="{password}"' for name, password in users.items())
    modules = "org.apache.kafka.common.security"
    plain = f"{modules}.plain.PlainLoginModule required {logins};"
    scram = f"{modules}.scram.ScramLoginModule required;"
    # Without a public key to check them with, it accepts tokens that are not signed.
    bearer = f"{modules}.oauthbearer.OAuthBearerLoginModule required;"
    jaas = dict.fromkeys(SCRAM, scram) | {"PLAIN": plain, "OAUTHBEARER": bearer}
    return {
        "sasl.enabled.mechanisms": ",".join(jaas),
        **{
            f"listener.name.{listener}.{mechanism.lower()}.sasl.jaas.config": text
            for mechanism, text in jaas.items()
            for listener in ("sasl", "tls")
        },
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }


def tls_settings(host: str, folder: Path, *, client_certificates: bool) -> dict[str, str]:
    """Make certificates, see `make_certificates`, and return the settings for them."""
    # Kafka reads PKCS #8 only.
    server = make_certificates(host, folder, plain_key=True)
    return {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(server),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
        "ssl.client.auth": "required" if client_certificates else "none",
    }
