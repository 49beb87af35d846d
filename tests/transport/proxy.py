"""A small HTTP proxy, as companies have them: hands requests on, makes tunnels, and may want a password."""

from __future__ import annotations

import base64
import contextlib
import socket
import socketserver
import threading
from urllib.parse import urlsplit

_HEAD_END = b"\r\n\r\n"


class _Visit(socketserver.BaseRequestHandler):
    """One connection of a client, to one server."""

    server: Proxy

    def handle(self) -> None:
        line, head, rest = self._head()
        method, target, _ = line.split()
        self.server.asked.append((f"{method} {target}", head))
        if not self.server.knows(head):
            self.request.sendall(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
            )
            return
        address = urlsplit(f"//{target}" if method == "CONNECT" else target)
        with socket.create_connection((str(address.hostname), address.port or 80)) as there:
            if method == "CONNECT":
                self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                there.sendall(rest)
            else:
                fields = [field for field in head.split("\r\n") if not field.lower().startswith("proxy-")]
                there.sendall("\r\n".join([f"{method} {address.path} HTTP/1.1", *fields]).encode() + _HEAD_END + rest)
            back = threading.Thread(target=_pump, args=(there, self.request))
            back.start()
            _pump(self.request, there, self.server.seen)
            back.join()

    def _head(self) -> tuple[str, str, bytes]:
        data = b""
        while _HEAD_END not in data:
            data += self.request.recv(65536)
        head, _, rest = data.partition(_HEAD_END)
        line, _, fields = head.decode().partition("\r\n")
        return line, fields, rest


class Proxy(socketserver.ThreadingTCPServer):
    """Serves in a thread for the length of a ``with`` block.

    Attributes:
        asked: The request line and the header fields of each connection's first request.
        seen: All bytes from clients after that.
    """

    allow_reuse_address = True

    def __init__(self, password: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Visit)
        self.asked: list[tuple[str, str]] = []
        self.seen = bytearray()
        self._password = password

    @property
    def url(self) -> str:
        """Its address, with the password if it wants one."""
        user = f"me:{self._password}@" if self._password else ""
        return f"http://{user}127.0.0.1:{self.server_address[1]}"

    def knows(self, head: str) -> bool:
        """Return whether who asks with this head may do so."""
        token = base64.b64encode(f"me:{self._password}".encode()).decode()
        return self._password is None or f"Proxy-Authorization: Basic {token}" in head

    def __enter__(self) -> Proxy:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, name="proxy").start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def _pump(source: socket.socket, target: socket.socket, copy: bytearray | None = None) -> None:
    """Hand bytes on until there are no more, or nobody wants them; then say so."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            if copy is not None:
                copy += data
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class _SocksVisit(socketserver.BaseRequestHandler):
    """One connection of a client, by SOCKS 5 without a password (https://www.rfc-editor.org/rfc/rfc1928)."""

    def handle(self) -> None:
        methods = self._take(2)[1]
        self._take(methods)
        self.request.sendall(b"\5\0")
        kind = self._take(4)[3]
        host = self._take(self._take(1)[0]).decode() if kind == 3 else socket.inet_ntoa(self._take(4))
        port = int.from_bytes(self._take(2), "big")
        with socket.create_connection((host, port)) as there:
            self.request.sendall(b"\5\0\0\1" + bytes(6))
            back = threading.Thread(target=_pump, args=(there, self.request))
            back.start()
            _pump(self.request, there)
            back.join()

    def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.request.recv(count - len(data))
            if not piece:
                raise ConnectionError("the client has left")
            data += piece
        return data


class SocksProxy(socketserver.ThreadingTCPServer):
    """A running SOCKS proxy, as a context manager."""

    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _SocksVisit)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"socks5h://127.0.0.1:{self.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
