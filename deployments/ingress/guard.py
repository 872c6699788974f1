"""Who may ask: bearer tokens, and without any only this machine."""

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence

from fastapi import Request

from deployments.ingress.config import ModelKey, Token
from deployments.ingress.errors import Unauthorized


class Guard:
    """The tokens that are good now."""

    def __init__(self, tokens: Sequence[Token] = (), *, sees_clients: bool = True) -> None:
        """Takes them as the configuration has them.

        Args:
            tokens: the SHA-256 of each, and what it is good for.
            sees_clients: False where every connection comes from a proxy on this machine.
        """
        self._tokens = tuple(tokens)
        self._sees_clients = sees_clients

    def admit(self, request: Request) -> None:
        """Lets a request in before its body is read, and with it the model's name.

        Raises:
            Unauthorized: it has no token that is good for anything. Where there are no tokens:
                it comes from another machine, or nobody knows from where.
        """
        if self._tokens:
            self._known(request)
        elif not self._sees_clients:
            raise Unauthorized("Behind HAProxy nobody may ask without --http-tokens.")
        elif not _from_here(request):
            raise Unauthorized("Without --http-tokens only this machine may ask.")

    def authorize(self, request: Request, key: ModelKey) -> None:
        """Lets a request use a model.

        Raises:
            Unauthorized: its token is good for others only.
        """
        if self._tokens:
            name = f"{key.pipeline}/{key.model_id}"
            if not any(not token.models or name in token.models for token in self._known(request)):
                raise Unauthorized("Invalid bearer token.")

    def _known(self, request: Request) -> list[Token]:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode()).hexdigest()
        # All are compared, each in constant time: the time tells nothing of any.
        known = [each for each in self._tokens if hmac.compare_digest(each.sha256, digest)]
        if not known or scheme.lower() != "bearer":
            raise Unauthorized("Invalid bearer token.")
        return known


def _from_here(request: Request) -> bool:
    """Whether the connection comes from this machine."""
    if request.client is None:
        return True  # a Unix socket
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
