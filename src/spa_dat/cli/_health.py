"""``spa-dat health``: asks applications that answer probes."""

from __future__ import annotations

import http.client
import json
import os
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from .._texts import bracketed, ip_and_port, quoted
from ..errors import ConfigurationError
from ..runtime.options._admin_address import TOKEN_VARIABLE
from ._admin_client import connected
from ._one_line import one_line
from ._standard_output import printing, write_text
from ._terminal import BAD, GOOD, styled

__all__ = ["ask_health"]

_MOST_BYTES = 1 << 20
_LONGEST = 500
_LEAST_TIMEOUT = 0.001
_READY, _UNREADY = 200, 503


@dataclass
class _Answer:
    """What one application has said.

    Attributes:
        address: where it was asked.
        healthy: whether it is ready, or alive, as asked.
        reasons: why not, by what has them; it gives them only to those who may know.
    """

    address: str
    healthy: bool
    reasons: dict[str, str] = field(default_factory=dict)


def ask_health(
    address: str | None, *, live: bool, workers: int, timeout: float, as_json: bool
) -> int:
    """Print whether applications are ready; returns the exit code.

    Args:
        address: where they answer probes, as ``HOST:PORT``.
        live: ask only whether they live.
        workers: how many to ask, from that port on.
        timeout: seconds to wait for each.
        as_json: print it for programs.

    Raises:
        ConfigurationError: the address is missing or wrong.
    """
    ip, port = _where(address, workers)
    answers = [_asked(ip, port + number, live, timeout) for number in range(workers)]
    with printing():
        for answer in answers:
            line = _as_line(answer, live)
            shown = styled(line, GOOD if answer.healthy else BAD)
            write_text((json.dumps(asdict(answer)) if as_json else shown) + "\n")
    return 0 if all(answer.healthy for answer in answers) else 1


def _where(text: str | None, workers: int) -> tuple[IPv4Address | IPv6Address, int]:
    if not text:
        raise ConfigurationError(
            "there is no address: give the one at which the application answers probes, or set the"
            " environment variable SPA_DAT_ADMIN"
        )
    try:
        ip, port = ip_and_port(text)
        if not 0 < port <= 65536 - workers:
            raise ValueError(text)
    except ValueError:
        raise ConfigurationError(
            f"{quoted(text)}: give HOST:PORT with an IP address and a port up to 65535, for example"
            " 127.0.0.1:8085 or [::1]:8085"
        ) from None
    if ip.is_unspecified:
        # Where it answers to everybody, it answers here.
        ip = IPv4Address("127.0.0.1") if ip.version == 4 else IPv6Address("::1")
    return ip, port


def _asked(ip: IPv4Address | IPv6Address, port: int, live: bool, timeout: float) -> _Answer:
    address = f"{bracketed(str(ip))}:{port}"
    token = os.environ.get(TOKEN_VARIABLE)
    headers = {"Authorization": f"Bearer {token}"} if token and token.isprintable() else {}
    try:
        with connected(str(ip), port, max(timeout, _LEAST_TIMEOUT)) as connection:
            connection.request("GET", "/healthz" if live else "/readyz", headers=headers)
            response = connection.getresponse()
            told = _told(response.read(_MOST_BYTES))
    except TimeoutError:
        return _Answer(address, False, {address: f"no answer within {timeout:g} s"})
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        why = getattr(error, "strerror", None) or repr(error)
        return _Answer(address, False, {address: f"no answer: {why}"})
    if response.status not in (_READY, _UNREADY):
        text = f"status {response.status}: perhaps something else answers there"
        return _Answer(address, False, {address: text})
    return _Answer(address, response.status == _READY, told)


def _told(body: bytes) -> dict[str, str]:
    try:
        found: Any = json.loads(body)
        reasons = found["reasons"]
        return {str(name): str(reason) for name, reason in reasons.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _as_line(answer: _Answer, live: bool) -> str:
    if answer.healthy:
        return f"{answer.address} {'is alive' if live else 'is ready'}"
    reasons = "; ".join(
        reason if name == answer.address else f"{name}: {reason}"
        for name, reason in answer.reasons.items()
    )
    line = f"{answer.address} {'is not alive' if live else 'is not ready'}: {reasons}"
    return one_line(line.removesuffix(": "))[:_LONGEST]
