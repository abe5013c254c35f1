"""The TLS context of a configuration."""

from __future__ import annotations

import ssl

from ..errors import ConfigurationError
from ._broker_config import BrokerConfig
from ._credentials import Secret

__all__ = ["tls_context"]


def tls_context(config: BrokerConfig) -> ssl.SSLContext | None:
    """Return the TLS context; None for plain TCP. Reads the certificate files each time.

    Raises:
        ConfigurationError: a file cannot be read or is not a certificate or key.
    """
    if not config.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=config.tls_ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if config.tls_cert is not None:
            password = config.tls_key_password
            if isinstance(password, Secret):
                password = password.reveal()
            # Without a password the function would prompt for one on the terminal.
            context.load_cert_chain(config.tls_cert, config.tls_key, password or "")
    except (OSError, ValueError) as error:
        files = [name for name in (config.tls_ca, config.tls_cert, config.tls_key) if name]
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise ConfigurationError(
            f"the TLS files {', '.join(map(repr, files))} cannot be used: {reason};"
            " check the options tls_ca, tls_cert, tls_key and tls_key_password"
        ) from error
    if config.tls_insecure_skip_verification:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
