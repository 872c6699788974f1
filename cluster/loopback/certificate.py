"""The certificate of an orchestrator, made anew at every start (go-livepeer, server/cert.go).

ECDSA P-256, self-signed, CA, an empty subject and one DNS name: the host of the service URI,
even where that is an IP address. Workers that trust it have to cope with exactly this.
"""

import datetime
import hashlib
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

_VALIDITY = datetime.timedelta(hours=8765)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCertificate:
    """A certificate and the server's side of TLS with it."""

    pem: str
    fingerprint: str
    """SHA-256 of the DER form, lower-case hex."""
    tls: ssl.SSLContext
    """Offers h2 and http/1.1."""


def make_certificate(host: str) -> ServerCertificate:
    """Returns a new certificate for `host`; the key leaves no trace on disk."""
    key = ec.generate_private_key(ec.SECP256R1())
    nobody = x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(nobody)
        .issuer_name(nobody)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + _VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        # Critical, because nothing else names the subject (RFC 5280, 4.1.2.6).
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return ServerCertificate(
        pem=pem.decode("ascii"),
        fingerprint=hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
        tls=_server_context(pem + private),
    )


def _server_context(chain_and_key: bytes) -> ssl.SSLContext:
    """Returns a context that serves this chain; OpenSSL reads it from a file only."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"])
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "orchestrator.pem"
        path.touch(mode=0o600)
        path.write_bytes(chain_and_key)
        context.load_cert_chain(path)
    return context
