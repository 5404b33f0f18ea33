"""ServerSettings: what a service allows its clients."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorahub_edge.errors import InvalidInput, first_line

_EVERYONE = "*"
# what --host means by "on all addresses", and the names under which this machine calls itself
_ALL_ADDRESSES = {"", "0.0.0.0", "::"}
_LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+|null")


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a service.

    Attributes:
        max_batch: texts answered together; a beam search counts once for each beam.
        cache_bytes: most memory of the caches of keys and values; texts wait while there is no room.
        max_waiting: texts that may wait; beyond it requests get 429.
        max_new_tokens: no answer is longer; None for the export's own limit.
        max_body_bytes: larger requests get 413.
        max_connections: open connections; beyond it requests get 503.
        header_s: a connection that takes longer to send a request's head is closed.
        body_s: a request whose body takes longer gets 408.
        send_s: a connection that reads nothing for so long, while an answer waits, is closed.
        timeout_s: an answer that takes longer is given up (504).
        shutdown_s: how long answers under way may take after a signal to stop.
        api_keys: clients must send one of them as `Authorization: Bearer KEY`; none for an open service.
        allow_loading: whether requests may load and unload adapters from this machine's files.
        allowed_hosts: names under which clients may ask, beside this machine's local ones; "*" for any. The address for
            all interfaces ("0.0.0.0", "::") stands for every IP address.
        allowed_origins: web sites whose pages may ask, for instance "https://example.org"; "*" for any. A page that the
            service itself has sent always may.

    Raises:
        InvalidInput: a value out of range.
    """

    max_batch: int = 32
    cache_bytes: int = 1 << 30
    max_waiting: int = 256
    max_new_tokens: int | None = None
    max_body_bytes: int = 1 << 20
    max_connections: int = 256
    header_s: float = 10.0
    body_s: float = 10.0
    send_s: float = 30.0
    timeout_s: float = 60.0
    shutdown_s: float = 30.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allow_loading: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and not (math.isfinite(value) and value > 0)
            ):
                raise InvalidInput(f"{name}: expected a finite number above 0, received {value}")
        for key in self.api_keys:
            if not (key and key.isascii() and key.isprintable() and " " not in key):
                raise InvalidInput("api_key: expected printable ASCII characters without spaces, at least one")
        for host in self.allowed_hosts:
            if re.search(r"[/\s\[]", host) or (":" in host and not _is_address(host)):
                raise InvalidInput(f"allowed_host: expected a name without scheme and port, received {host!r}")
        for origin in self.allowed_origins:
            if origin != _EVERYONE and not _ORIGIN.fullmatch(origin.lower()):
                raise InvalidInput(
                    f"allowed_origin: expected a site such as https://example.org, without a path, received {origin!r}"
                )

    def allows_host(self, header: str) -> bool:
        """Whether a Host header names this service; a page of another name that resolves here is an attack."""
        host = header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0]
        allowed = {name.lower() for name in self.allowed_hosts}
        return (
            _EVERYONE in allowed
            or host.lower() in _LOCAL_NAMES | allowed
            or (bool(allowed & _ALL_ADDRESSES) and _is_address(host))
        )

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether pages of an origin may ask a service that they call by this Host header."""
        allowed = {name.lower() for name in self.allowed_origins}
        origin = origin.lower()
        return _EVERYONE in allowed or origin in allowed or origin.partition("://")[2] == host.lower() != ""


def read_api_keys(given: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """Given keys and those of a file, one a line; without any the one in LORAHUB_EDGE_API_KEY, if that is set.

    An empty variable is an empty key, which is refused: otherwise the service would be open in silence.

    Raises:
        InvalidInput: a file that cannot be read or has no keys.
    """
    keys = list(given)
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"api_key_file {file}: cannot be read ({first_line(error)})") from error
        keys += [line.strip() for line in lines if line.strip()]
        if not keys:
            raise InvalidInput(f"api_key_file {file}: expected at least one key, received none")
    if not keys and (key := os.environ.get("LORAHUB_EDGE_API_KEY")) is not None:
        keys = [key]
    return tuple(keys)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
