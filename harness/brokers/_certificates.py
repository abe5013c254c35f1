"""Certificates for brokers that speak TLS."""

from __future__ import annotations

from pathlib import Path

from ._errors import BrokerUnavailable

__all__ = ["make_certificates"]


def make_certificates(host: str, folder: Path, *, plain_key: bool = False) -> Path:
    """Make a new certificate authority, and certificates of a server and a client.

    Writes ``ca.pem``, and ``server.pem`` and ``client.pem`` with their keys, to the folder.

    Args:
        host: the host name in the server's certificate.
        folder: where to write.
        plain_key: write the server's key as PKCS #8.

    Returns:
        The file of the server.

    Raises:
        BrokerUnavailable: the package ``trustme`` is not installed.
    """
    try:
        import trustme
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise BrokerUnavailable(
            "tls=True needs a package that makes certificates: pip install trustme"
        ) from error
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued = authority.issue_cert(host, "localhost")
    key = issued.private_key_pem.bytes()
    if plain_key:
        key = serialization.load_pem_private_key(key, None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    server = folder / "server.pem"
    server.write_bytes(key + b"".join(part.bytes() for part in issued.cert_chain_pems))
    client = authority.issue_cert("client@example.org")
    client.private_key_and_cert_chain_pem.write_to_path(str(folder / "client.pem"))
    return server
