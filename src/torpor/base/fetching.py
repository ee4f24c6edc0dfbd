"""Fetches a small document that a tenant names by its URL: from the internet, and from nowhere inside.

HTTPS with a certificate that is verified, no redirects, no proxy of the environment. The name is looked up once, every address of it
must be a public one (or in a network that is allowed), and it is to that address that the connection is made: what the name means
later doesn't matter. Bounded in bytes and time. Concurrency: safe to cancel; any number at once.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

import httptools

_TIMEOUT_S = 5.0
_READ_BYTES = 16_384
_MAX_URL_CHARACTERS = 2_000
_OK = 200

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class FetchFailed(Exception):
    """It could not be fetched; the text says why, without anything that was answered."""


def check_url(url: str) -> None:
    """Raise ValueError for what is no URL that is fetched from."""
    parts = urlsplit(url)
    if len(url) > _MAX_URL_CHARACTERS or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("the URL is too long, or has characters that don't belong in one")
    if parts.scheme not in ("https", "http") or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise ValueError("the URL has to be of the form https://HOST/PATH")
    _ = parts.port


class Fetcher:
    """`is_allowed` says of an address on this side of the internet whether it may be asked, over plain HTTP too."""

    def __init__(self, is_allowed: Callable[[str], bool], trust: Callable[[], ssl.SSLContext] = ssl.create_default_context) -> None:
        self._is_allowed = is_allowed
        self._trust = trust

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    async def fetch(self, url: str, limit_bytes: int) -> bytes:
        """The document. Raises FetchFailed."""
        try:
            check_url(url)
            async with asyncio.timeout(_TIMEOUT_S):
                return await self._fetch(url, limit_bytes)
        except TimeoutError:
            raise FetchFailed(f"no answer within {_TIMEOUT_S:g} s") from None
        except ssl.SSLError as error:
            raise FetchFailed(f"TLS failed: {getattr(error, 'verify_message', '') or error.reason}") from None
        except OSError as error:
            raise FetchFailed(f"it can't be reached: {error.strerror or 'no connection'}") from None
        except (ValueError, httptools.HttpParserError, asyncio.IncompleteReadError) as error:
            raise FetchFailed(str(error) if isinstance(error, ValueError) else "what was answered is no HTTP") from None

    async def _fetch(self, url: str, limit_bytes: int) -> bytes:
        parts = urlsplit(url)
        secure, host = parts.scheme == "https", parts.hostname or ""
        port = parts.port or (443 if secure else 80)
        address = await self._address(host, port, secure)
        context = await asyncio.to_thread(self._trust) if secure else None
        reader, writer = await asyncio.open_connection(str(address), port, ssl=context, server_hostname=host if secure else None)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            head = f"GET {target} HTTP/1.1\r\nhost: {parts.netloc}\r\naccept: application/json\r\naccept-encoding: identity\r\n"
            writer.write(f"{head}user-agent: torpor\r\nconnection: close\r\n\r\n".encode("ascii"))
            answer = _Answer(limit_bytes)
            parser = httptools.HttpResponseParser(answer)
            left = limit_bytes + 2 * _READ_BYTES  # with the head
            while not answer.is_whole and (data := await reader.read(_READ_BYTES)):
                left -= len(data)
                if left < 0:
                    raise FetchFailed(f"it is larger than {limit_bytes} bytes")
                try:
                    parser.feed_data(data)
                except httptools.HttpParserCallbackError as error:
                    raise (error.__context__ if isinstance(error.__context__, FetchFailed) else error) from None
                if answer.is_begun and parser.get_status_code() != _OK:
                    raise FetchFailed(f"it answered {parser.get_status_code()}, not 200 (redirects aren't followed)")
            if not answer.is_begun or (answer.has_length and not answer.is_whole):
                raise FetchFailed("the answer was cut off")
            return bytes(answer.body)
        finally:
            writer.transport.abort()

    async def _address(self, host: str, port: int, secure: bool) -> Address:
        """Where `host` is. Raises FetchFailed when that is nowhere that may be asked."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror:
            raise FetchFailed(f"{host} can't be found") from None
        addresses = [ipaddress.ip_address(address[0].partition("%")[0]) for *_, address in found if isinstance(address[0], str)]
        for address in addresses:
            if self._is_allowed(str(address)):
                continue
            if not _is_public(address):
                raise FetchFailed(f"{host} is an address that isn't public; the setting jwks_networks can allow it")
            if not secure:
                raise FetchFailed("it must be an https:// URL")
        if not addresses:
            raise FetchFailed(f"{host} can't be found")
        return addresses[0]


def _is_public(address: Address) -> bool:
    inner = None
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if inner is not None:
        return _is_public(inner)
    return address.is_global and not address.is_multicast


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class _Answer:
    """What httptools tells of the answer."""

    def __init__(self, limit_bytes: int) -> None:
        self.body = bytearray()
        self.is_begun = self.is_whole = self.has_length = False
        self._limit_bytes = limit_bytes

    def on_header(self, name: bytes, _value: bytes) -> None:
        self.has_length = self.has_length or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self.is_begun = True

    def on_body(self, data: bytes) -> None:
        self.body += data
        if len(self.body) > self._limit_bytes:
            raise FetchFailed(f"it is larger than {self._limit_bytes} bytes")

    def on_message_complete(self) -> None:
        self.is_whole = True
