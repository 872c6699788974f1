"""Who the orchestrator is: its certificate, and the TLS context that follows from it.

An orchestrator makes a self-signed certificate at every start (go-livepeer,
core/livepeernode.go and server/rpc.go), so there is no authority to check it against. We
trust the one that is presented on connecting, for that connection only, and an operator may
pin its fingerprint. The fingerprint also tells one orchestrator process from the next: task
ids start again at 0 with each, and an answer must never reach the wrong one.
"""

import asyncio
import hashlib
import socket
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509

from cluster.bridge.address import Address
from cluster.errors import FingerprintMismatch, OrchestratorUnreachable

CONNECT_TIMEOUT_S = 10.0

NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which Python has no name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One orchestrator process, as told apart by its certificate."""

    address: Address
    pem: bytes | None = None
    """None when it speaks plaintext."""
    fingerprint: str = ""
    """SHA-256 of the certificate in hex; empty when it speaks plaintext."""
    name: str = ""
    """The certificate's own DNS name, which is what TLS has to be told to expect."""
    tls: ssl.SSLContext | None = field(default=None, compare=False, repr=False)
    """Trusts this one certificate and nothing else."""


async def identify(
    address: Address, *, pin: str | None = None, timeout_s: float = CONNECT_TIMEOUT_S
) -> Peer:
    """Connects once and returns who is there.

    Raises:
        OrchestratorUnreachable: nobody answers, or what answers does not speak TLS.
        FingerprintMismatch: the certificate is not the pinned one.
    """
    if not address.tls:
        return Peer(address=address)
    try:
        pem = await asyncio.to_thread(
            ssl.get_server_certificate, (address.host, address.port), timeout=timeout_s
        )
    except ssl.SSLError as error:
        raise OrchestratorUnreachable(
            f"{address} does not speak TLS ({error.reason or error}); an orchestrator that "
            f"listens in plaintext is named http://{address.authority}"
        ) from error
    except socket.gaierror as error:
        raise OrchestratorUnreachable(f"{address}: no such host ({error.strerror})") from error
    except OSError as error:
        raise OrchestratorUnreachable(f"{address}: {error.strerror or error}") from error
    peer = peer_with(address, pem)
    if pin is not None and pin != peer.fingerprint:
        raise FingerprintMismatch(
            f"{address} presents a certificate with the fingerprint {peer.fingerprint}, pinned is "
            f"{pin}; an orchestrator makes a new certificate at every start unless it is given one"
        )
    _check_the_clock(peer)
    return peer


def _check_the_clock(peer: Peer) -> None:
    """Says what is wrong where gRPC, which insists on it, would say it in its own words.

    Raises:
        OrchestratorUnreachable: the certificate is not valid at this machine's time.
    """
    if peer.pem is None:
        return
    certificate = x509.load_pem_x509_certificate(peer.pem)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.now(UTC)
    if not first <= now <= last:
        raise OrchestratorUnreachable(
            f"{peer.address} has a certificate that is valid from {first:%F %T} to {last:%F %T} "
            f"and this machine's clock says {now:%F %T} (UTC): set the clock of one of the two"
        )


def peer_with(address: Address, pem: str) -> Peer:
    """Returns the peer of a certificate.

    Raises:
        OrchestratorUnreachable: it cannot be read.
    """
    try:
        der = ssl.PEM_cert_to_DER_cert(pem)
        tls = ssl.create_default_context(cadata=pem)
        name = _dns_name(der) or address.host
    except (ssl.SSLError, ValueError) as error:
        raise OrchestratorUnreachable(
            f"{address} presents a certificate that cannot be read: {error}"
        ) from error
    # The only trusted root is the certificate itself. Its one name is a DNS name even where
    # it is an IP address, and OpenSSL matches an IP address against IP names only.
    tls.check_hostname = False
    # Nor does a clock that was set back make it another one: jobs of it would stay unanswered.
    tls.verify_flags |= NO_CHECK_TIME
    return Peer(
        address=address,
        pem=pem.encode("ascii"),
        fingerprint=hashlib.sha256(der).hexdigest(),
        name=name,
        tls=tls,
    )


def _dns_name(der: bytes) -> str | None:
    certificate = x509.load_der_x509_certificate(der)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return None
    return next(iter(names.value.get_values_for_type(x509.DNSName)), None)
