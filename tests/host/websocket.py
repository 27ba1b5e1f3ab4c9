"""A small WebSocket client (RFC 6455) that only listens, so that the tests need no package for it."""

import base64
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

_CONTINUED, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10


class WebSocket:
    """Iterate over a server's messages, `str` for texts and `bytes` otherwise, until it closes the connection.

    Raises:
        ConnectionError: the server does not support WebSocket there, or closed the connection.
        TimeoutError: no message arrived for `timeout` seconds.
    """

    def __init__(self, url: str, timeout: float):
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout)
        self._stream = self._socket.makefile("rb")
        lines = [
            f"GET {parts.path}?{parts.query} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Version: 13",
        ]
        self._socket.sendall("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
        status, *_ = iter(self._stream.readline, b"\r\n")
        if b" 101 " not in status:
            self.close()
            raise ConnectionError(f"{url} answered {status.decode().strip()}")

    def __enter__(self) -> "WebSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def __iter__(self) -> Iterator[str | bytes]:
        kind, gathered = _CONTINUED, b""
        while True:
            last, code, payload = self._frame()
            if code == _CLOSE:
                return
            if code == _PING:
                self._socket.sendall(bytes([0x80 | _PONG, 0x80 | len(payload)]) + bytes(4) + payload)  # mask of zeros
            if code in (_PING, _PONG):
                continue
            kind, gathered = code or kind, gathered + payload
            if last:
                yield gathered.decode() if kind == _TEXT else gathered
                gathered = b""

    def _frame(self) -> tuple[bool, int, bytes]:
        first, length = self._read(2)  # a server's frames are not masked, so the mask bit beside the length is 0
        if length > 125:
            length = int.from_bytes(self._read(2 if length == 126 else 8), "big")
        return bool(first & 0x80), first & 0x0F, self._read(length)

    def _read(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) != count:
            raise ConnectionError("the server closed the connection during a message")
        return data
