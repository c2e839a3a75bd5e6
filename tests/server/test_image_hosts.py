"""No spelling of an inner address gets through to a fetch (OWASP's cheat sheet on SSRF, and its sources)."""

import ipaddress
import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from modint_guard.errors import ConfigError, ImageError
from modint_server.request.image_hosts import ImageHosts, is_public
from modint_server.request.pictures import CheckedResolver

# Written otherwise, 127.0.0.1, 169.254.169.254 and their like.
SPELLINGS = [
    "http://127.0.0.1/",
    "http://127.0.0.1./",
    "http://127.1/",
    "http://127.0.1/",
    "http://0/",
    "http://0.0.0.0/",
    "http://2130706433/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://0177.0000.0000.0001/",
    "http://0x7f000001/",
    "http://0x7f.0x0.0x0.0x1/",
    "http://0x7f.1/",
    "http://127.0.0.0x1/",
    "http://[::]/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[2001:0:7f00:1::80ff:fffe]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25lo]/",
    "http://[fc00::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.169.254./latest/meta-data/",
    "http://2852039166/latest/meta-data/",
    "http://0xA9FEA9FE/",
    "http://0251.0376.0251.0376/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[fd00:ec2::254]/",
    "http://168.63.129.16/",
    "http://100.100.100.200/",
    "http://192.0.0.192/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.0.1/",
    "http://100.64.0.1/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
    "http://pictures.example.org@127.0.0.1/",
    "http://127.0.0.1#@pictures.example.org/",
    "http://127.0.0.1?@pictures.example.org/",
    "http://127.0.0.1\\@pictures.example.org/",
    "http:///127.0.0.1/",
    "http:127.0.0.1",
    "file:///etc/passwd",
    "gopher://pictures.example.org/",
    "ftp://pictures.example.org/",
    "//pictures.example.org/",
    "http://pictures.example.org:22/",
]


@pytest.mark.parametrize("address", SPELLINGS)
def test_no_spelling_of_an_inner_address_is_let_through_even_where_every_host_is_listed(address: str) -> None:
    with pytest.raises((ImageError, ValueError)):
        ImageHosts.of(["*"]).check(URL(address))


class Answering(AbstractResolver):
    """A name server that says the same of every name."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=each, port=port, family=family, proto=0, flags=0)
            for each in self.addresses
        ]

    async def close(self) -> None:
        return None


@pytest.mark.parametrize(
    "addresses",
    [["10.0.0.1"], ["::1"], ["fe80::1%eth0"], ["93.184.215.14", "127.0.0.1"], ["169.254.169.254"]],
)
async def test_a_listed_name_that_has_an_inner_address_is_not_dialled(addresses: list[str]) -> None:
    hosts = ImageHosts.of(["pictures.example.org"])
    hosts.check(URL("https://pictures.example.org/a.png"))
    with pytest.raises(ImageError, match="no public address"):
        await CheckedResolver(hosts, Answering(*addresses)).resolve("pictures.example.org", 443)


async def test_an_inner_range_that_is_listed_may_be_dialled() -> None:
    hosts = ImageHosts.of(["pictures.internal", "10.1.0.0/16"])
    found = await CheckedResolver(hosts, Answering("10.1.2.3")).resolve("pictures.internal", 80)
    assert [each["host"] for each in found] == ["10.1.2.3"]
    with pytest.raises(ImageError):
        await CheckedResolver(hosts, Answering("10.2.0.1")).resolve("pictures.internal", 80)


@pytest.mark.parametrize(
    ("entry", "allowed", "refused"),
    [
        (
            "pictures.example.org",
            ["https://pictures.example.org/a", "http://PICTURES.example.org:443/"],
            ["https://example.org/", "https://a.pictures.example.org/", "https://pictures.example.org:8443/"],
        ),
        (
            "*.example.org",
            ["https://a.example.org/", "https://a.b.example.org/"],
            ["https://example.org/", "https://badexample.org/", "https://a.example.org.evil.net/"],
        ),
        ("a.example.org:8443", ["https://a.example.org:8443/"], ["https://a.example.org/"]),
        ("*", ["https://anything.net/", "http://93.184.215.14/"], ["https://anything.net:8080/"]),
        ("*:8080", ["http://anything.net:8080/"], ["http://anything.net/"]),
        ("10.1.0.0/16", ["http://10.1.2.3/"], ["http://10.2.0.1/", "http://10.1.2.3:81/", "http://a.net/"]),
        ("127.0.0.1:9000", ["http://127.0.0.1:9000/"], ["http://127.0.0.1:9001/", "http://127.0.0.2:9000/"]),
        ("[::1]:9000", ["http://[::1]:9000/", "http://[0:0::1]:9000/"], ["http://[::2]:9000/"]),
        ("::1", ["http://[::1]/"], ["http://[::1]:9000/"]),
        (
            "xn--mnchen-3ya.example",
            ["https://xn--mnchen-3ya.example/", "https://MÜNCHEN.example/"],
            ["https://a.example/"],
        ),
    ],
)
def test_an_entry_allows_what_it_names_and_nothing_beside(
    entry: str, allowed: list[str], refused: list[str]
) -> None:
    hosts = ImageHosts.of([entry])
    for address in allowed:
        hosts.check(URL(address))
    for address in refused:
        with pytest.raises(ImageError):
            hosts.check(URL(address))


@pytest.mark.parametrize(
    "entry",
    ["https://a.org", "a.org/b", "a b", "*.*", "a.*", "127.1", "a.org:http", "10.1.2.3/8", "münchen.de"],
)
def test_an_entry_that_names_no_host_is_refused_with_a_remedy(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"image_hosts: .* is no host: write"):
        ImageHosts.of([entry])


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07::1", True),
        ("64:ff9b::5db8:d70e", True),  # 93.184.215.14 behind NAT64
        ("::ffff:93.184.215.14", True),
        ("::ffff:10.0.0.1", False),
        ("192.88.99.1", False),
        ("239.1.1.1", False),
        ("2001:db8::1", False),
    ],
)
def test_an_address_within_another_counts_as_what_it_stands_for(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public
