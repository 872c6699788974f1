"""Where an orchestrator listens, as the operator writes it."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from cluster.errors import ConfigError

DEFAULT_PORT = 8935
"""The port of an orchestrator's service URI."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where an orchestrator listens."""

    host: str
    port: int
    tls: bool = True

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Reads `HOST`, `HOST:PORT`, `https://HOST:PORT` or, for plaintext, `http://HOST:PORT`.

        Raises:
            ConfigError: the text names no host and port.
        """
        try:
            url = urlsplit(text if "://" in text else f"https://{text}")
            host, port = url.hostname or "", DEFAULT_PORT if url.port is None else url.port
            # What resolving it would raise.
            host.encode("idna")
        except ValueError:
            host, port = "", 0
        if not (host and port and _is_word(text)) or url.scheme not in ("http", "https"):
            raise ConfigError(
                f"orchestrator address {text!r}: want HOST:PORT, such as orchestrator.example:8935"
            )
        if url.path.strip("/") or url.query or url.username:
            raise ConfigError(f"orchestrator address {text!r}: want HOST:PORT and nothing after it")
        return cls(host=host, port=port, tls=url.scheme == "https")

    @property
    def authority(self) -> str:
        """`HOST:PORT`, with brackets around an IPv6 address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """`https://HOST:PORT`."""
        return f"{'https' if self.tls else 'http'}://{self.authority}"

    def __str__(self) -> str:
        return self.authority if self.tls else self.url


def _is_word(text: str) -> bool:
    return text.isprintable() and " " not in text
