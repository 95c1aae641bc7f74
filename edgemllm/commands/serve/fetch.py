"""Fetching an address that a stranger names: only from the public network, and never more than was agreed."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urljoin

import httpcore

from edgemllm.commands.serve.refusal import Refusal
from edgemllm.media.capture import shown

SECONDS = 30.0
"""For everything, redirects included."""
REDIRECTS = 3
EMBEDDED = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses that a gateway turns into the IPv4 address in their last four bytes."""


def fetch(url: str, most: int, private: bool = False) -> bytes:
    """Return what an http(s) address holds, at most `most` bytes. Raises Refusal.

    The address that is connected to is the one that was checked: a name that means another one a moment later changes nothing.
    """
    ends = time.monotonic() + SECONDS
    try:
        with httpcore.ConnectionPool(network_backend=Network(private)) as pool:
            for _ in range(REDIRECTS + 1):
                found = _get(pool, url, most, ends)
                if isinstance(found, bytes):
                    return found
                url = urljoin(url, found)
                if not url.startswith(("http://", "https://")):
                    raise _failed(url, "a redirect to what is no http address")
    except (httpcore.ProtocolError, httpcore.NetworkError, httpcore.TimeoutException, httpcore.UnsupportedProtocol) as error:
        raise _failed(url, str(error) or type(error).__name__) from error
    except (ValueError, UnicodeError) as error:
        raise _failed(url, "not an address") from error
    raise _failed(url, f"more than {REDIRECTS} redirects")


def _get(pool: httpcore.ConnectionPool, url: str, most: int, ends: float) -> bytes | str:
    """Return the content, or the address that a redirect names."""
    patience = {name: max(0.1, ends - time.monotonic()) for name in ("connect", "read", "write", "pool")}
    with pool.stream("GET", url, headers={"User-Agent": "edgemllm"}, extensions={"timeout": patience}) as response:
        headers = {name.lower(): value for name, value in response.headers}
        if response.status in (301, 302, 303, 307, 308) and b"location" in headers:
            return headers[b"location"].decode("latin-1")
        if response.status != 200:
            raise _failed(url, f"status {response.status}")
        content = bytearray()
        for part in response.iter_stream():
            content += part
            if len(content) > most:
                raise Refusal(413, f"{shown(url)[:200]} holds more than {most:,} bytes", code="media_too_large")
            if time.monotonic() > ends:
                raise _failed(url, f"not complete after {SECONDS:g} s")
        return bytes(content)


def _failed(url: str, why: str) -> Refusal:
    return Refusal(400, f"{shown(url)[:200]} cannot be fetched: {why}", code="invalid_url")


class Network(httpcore.NetworkBackend):
    """Connects to public addresses, and to others if `private`."""

    def __init__(self, private: bool) -> None:
        self.private, self._plain = private, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of a host. Raises Refusal where one of them is not public."""
        try:
            found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except OSError as error:
            raise httpcore.ConnectError(str(error.strerror or error)) from error
        if not self.private and not all(map(is_public, found)):
            raise Refusal(
                403, f"{host} is not on the public network", "edgemllm serve --allow-private", code="address_not_allowed"
            )
        return self._plain.connect_tcp(found[0], port, timeout, local_address, socket_options)


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public network, also the IPv4 address that it may carry inside."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in EMBEDDED:
            inner = ipaddress.IPv4Address(ip.packed[-4:])
        ip = inner or ip
    return ip.is_global and not ip.is_multicast
