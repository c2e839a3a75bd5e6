"""Which hosts pictures may be fetched from, and which addresses those may have (server-side request forgery).

A URL is read by one parser, the one that the client dials with, and every address that a name has is checked
before it is dialled. See OWASP's "Server-Side Request Forgery Prevention Cheat Sheet".
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from yarl import URL

from modint_guard.errors import ConfigError, ImageError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MAX_URL_CHARS = 8192
ANY = "*"
_DEFAULT_PORTS = frozenset({80, 443})
_NAME = re.compile(r"\*|(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_PORT = re.compile(r"(?P<host>.+):(?P<port>\d{1,5})")
# Global by the registries, and yet inside a cloud: Azure's metadata, the IETF's own, relays of 6to4.
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24")))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class ImageHosts:
    """The setting `MODINT_IMAGE_HOSTS`, read by `of`.

    names: host names, `*.` before a domain for all below it, `*` for every host, each with its port; None for
    80 and 443. networks: ranges of addresses that may be dialled although they are not public.
    """

    names: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[str]) -> Self:
        """The entries read. Raises ConfigError for one that is neither a name nor an address or a range."""
        names: set[tuple[str, int | None]] = set()
        networks: list[Network] = []
        for entry in entries:
            host, port = _split(entry.lower())
            if (network := _network(host)) is not None:
                networks.append(network)
                if network.num_addresses == 1:
                    names.add((str(network.network_address), port))
            elif _NAME.fullmatch(host) and not _is_numeric(host):
                names.add((host, port))
            else:
                raise ConfigError(
                    f"image_hosts: {entry[:60]!r} is no host: write pictures.example.org, *.example.org, * "
                    "or 10.1.0.0/16, names with a :port if it is neither 80 nor 443"
                )
        return cls(frozenset(names), tuple(networks))

    def __bool__(self) -> bool:
        return bool(self.names or self.networks)

    def check(self, url: URL) -> None:
        """Raises ImageError unless this URL may be fetched, as far as its text says: no name is resolved."""
        host, port = url.raw_host, url.port
        if url.scheme not in ("http", "https") or not host or port is None:
            raise refused("An image's address must begin with http:// or https:// and name a host.")
        if url.raw_user is not None or url.raw_password is not None:
            raise refused("An image's address must hold no user and no password.")
        literal = _address(host)
        if literal is None and _is_numeric(host):
            raise refused("An image's address names its host by a number: write the host's name.")
        if not self._lists(host.lower() if literal is None else str(literal), port, literal):
            raise refused("Images are not fetched from this host: send the image itself as a data: URL.")
        if literal is not None:
            self.check_address(literal)

    def check_address(self, address: Address) -> None:
        """Raises ImageError unless an address is public or in a listed range."""
        if not any(address in network for network in self.networks) and not is_public(address):
            raise refused("The host of an image has no public address: send the image itself as a data: URL.")

    def _lists(self, host: str, port: int, literal: Address | None) -> bool:
        ports = (port, None) if port in _DEFAULT_PORTS else (port,)
        domains: list[str] = []
        if literal is None:
            domains = [f"*.{host[at + 1 :]}" for at, sign in enumerate(host) if sign == "."]
        elif None in ports and any(literal in known for known in self.networks):
            return True
        return any((name, known) in self.names for name in (host, *domains, ANY) for known in ports)


def is_public(address: Address) -> bool:
    """Whether an address is one of the public Internet; of an IPv4 address within IPv6, whether that is."""
    if isinstance(address, ipaddress.IPv6Address):
        if (inner := _inner(address)) is not None:
            return is_public(inner)
        if address.is_site_local or address.scope_id is not None:
            return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _NOT_PUBLIC)
    )


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that is meant: mapped, by NAT64, 6to4 or Teredo."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)


def refused(message: str) -> ImageError:
    """The error for an address that is not fetched."""
    return ImageError(message, code="remote_image_refused")


def _split(entry: str) -> tuple[str, int | None]:
    """Host and port of an entry; the port None if it has none."""
    if entry.startswith("[") and entry.endswith("]"):
        return entry[1:-1], None
    if (found := _PORT.fullmatch(entry)) is None or _network(entry) is not None:
        return entry, None
    host, port = found["host"], int(found["port"])
    return host.removeprefix("[").removesuffix("]"), port


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_numeric(host: str) -> bool:
    """Whether resolvers may take a host for a number: 127.1, 2130706433, 0177.0.0.1, 0x7f.1, 127.0.0.1."""
    last = host.rstrip(".").rpartition(".")[2]
    return last.isdigit() or bool(re.fullmatch(r"0[xX][0-9a-fA-F]*", last)) or ":" in host
