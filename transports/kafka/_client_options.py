"""The options of the library's clients, from the configuration."""

from __future__ import annotations

import logging
import re
from typing import Any

from aiokafka.abc import AbstractTokenProvider

from ...errors import ConfigurationError
from .._tls import tls_context
from ._config import KafkaConfig

__all__ = ["common_options", "connection_options", "fetch_options", "renewed_options"]

_LIBRARY = "aiokafka"
_LEAST_FETCHED = 65_536
_SHORTEST_RETRY, _LONGEST_RETRY = 0.02, 0.1
# RFC 6750. Any other character could end the token and begin something else.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


def common_options(config: KafkaConfig, client_id: str) -> dict[str, Any]:
    """Return the keyword arguments common to producers, consumers and admin clients.

    Reads the certificate files each time. Also keeps the library's loggers from revealing secrets.

    Args:
        config: the configuration.
        client_id: the client's name in the cluster's logs and quotas.

    Raises:
        ConfigurationError: a TLS file cannot be read or is no certificate or key.
    """
    retry = min(max(config.backoff_min, _SHORTEST_RETRY), _LONGEST_RETRY)
    return {
        "bootstrap_servers": config.servers.split(","),
        "request_timeout_ms": int(config.request_timeout * 1000),
        "metadata_max_age_ms": max(1, int(config.topic_refresh * 1000)),
        "retry_backoff_ms": int(retry * 1000),
        **connection_options(config, client_id),
    }


def fetch_options(window_bytes: int) -> dict[str, Any]:
    """Return the fetch limits of a consumer; it may hold that much per broker besides its window.

    A larger record still comes, alone.
    """
    most = max(_LEAST_FETCHED, min(window_bytes // 2, 2**31 - 1))
    return {"fetch_max_bytes": most, "max_partition_fetch_bytes": most}


def connection_options(config: KafkaConfig, client_id: str) -> dict[str, Any]:
    """Return the keyword arguments of one connection; `renewed_options` come in addition.

    Raises:
        ConfigurationError: a TLS file cannot be read or is no certificate or key.
    """
    _restrain_loggers()
    protocol = "SSL" if config.tls else "PLAINTEXT"
    options: dict[str, Any] = {"client_id": client_id, "ssl_context": tls_context(config)}
    secret = config.login.secret
    if secret is not None:
        protocol = "SASL_SSL" if config.tls else "SASL_PLAINTEXT"
        options["sasl_mechanism"] = config.sasl_mechanism
        options["sasl_plain_username"] = config.login.username
        options["sasl_plain_password"] = secret.reveal()
    options["security_protocol"] = protocol
    return options


async def renewed_options(config: KafkaConfig) -> dict[str, Any]:
    """Return those keyword arguments of a connection that may change while a program runs.

    Raises:
        OSError: a function did not return a password.
        ConfigurationError: a TLS file or the password cannot be used.
    """
    login = await config.current_login()
    options: dict[str, Any] = {"ssl_context": tls_context(config)}
    password = await login.current_password()
    if config.uses_token:
        options["sasl_oauth_token_provider"] = _Token(password)
    elif password is not None:
        options["sasl_plain_username"] = login.username
        options["sasl_plain_password"] = password
    return options


class _Token(AbstractTokenProvider):  # type: ignore[misc]
    """Gives the library the token for one connection."""

    def __init__(self, token: str | None) -> None:
        if token is None or not _TOKEN.fullmatch(token):
            raise ConfigurationError(
                "the token for sasl_mechanism='OAUTHBEARER' is invalid: a token consists of A-Z,"
                " a-z, 0-9 and -._~+/, with = only at its end"
            )
        self._token = token

    async def token(self) -> str:
        return self._token


def _restrain_loggers() -> None:
    """Limit the library's loggers: they reveal passwords at DEBUG, and flood during outages.

    To see more than this package says, set a level for the logger; below INFO it has no effect.
    """
    library = logging.getLogger(_LIBRARY)
    if library.level == logging.NOTSET:
        library.setLevel(logging.CRITICAL)
    for name in (_LIBRARY, *logging.root.manager.loggerDict):
        if name == _LIBRARY or name.startswith(f"{_LIBRARY}."):
            logger = logging.getLogger(name)
            if logger.level != logging.NOTSET and logger.level < logging.INFO:
                logger.setLevel(logging.INFO)
