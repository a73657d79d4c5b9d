"""A server on this machine that answers as the Hub does, or as badly as a test asks it to."""

from __future__ import annotations

import json
import re
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Behaviour:
    """How files are served.

    Attributes:
        ranges: Whether the server knows ranges; without, it sends whole files.
        redirect: Where safetensors files really lie.
        fail: Status of an answer by how many times it is given first, for every address.
        retry_after: Seconds it then asks to wait.
        drip: Seconds between the bytes of a file.
        drip_headers: The same of an answer's headers.
        cut: Bytes after which a file's connection breaks.
        shift: How many bytes off the part is that is sent.
        hide_size: Whether the size of a file is left out of an answer to a range.
        claim: Size of a file as told, in place of the real one.
        gzip: Whether files are said to be compressed.
    """

    ranges: bool = True
    redirect: str | None = None
    fail: dict[int, int] = field(default_factory=dict)
    retry_after: str | None = None
    drip: float = 0.0
    drip_headers: float = 0.0
    cut: int | None = None
    shift: int = 0
    hide_size: bool = False
    claim: int | None = None
    gzip: bool = False


@dataclass
class Request:
    """A request as it came, and how many bytes of an answer went out for it."""

    path: str
    authorization: str | None
    range: str | None
    host: str | None
    sent: int = 0


class HubServer:
    """Repositories by name, each with its files by name and its card's data."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.cards: dict[str, object] = {}
        self.behaviour = Behaviour()
        self.requests: list[Request] = []
        self.failures: Counter[int] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, name: str, files: Mapping[str, bytes], card: object = None) -> None:
        self.repositories[name] = dict(files)
        self.cards[name] = card

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def safetensors(shapes: Mapping[str, tuple[int, ...]], *, pad: int = 0) -> bytes:
    """A file of float32 zeros, with ``pad`` bytes of remarks in its header."""
    header: dict[str, object] = {"__metadata__": {"remark": "x" * pad}}
    position = 0
    for name, shape in sorted(shapes.items()):
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    return with_header(header, bytes(position))


def with_header(header: object, data: bytes = b"") -> bytes:
    """A file with this header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _handler_of(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            get = self.headers.get
            self.request_seen = Request(self.path, get("Authorization"), get("Range"), get("Host"))
            hub.requests.append(self.request_seen)
            try:
                self.answer()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        do_HEAD = do_GET  # noqa: N815

        def answer(self) -> None:
            for status, times in hub.behaviour.fail.items():
                if hub.failures[status] < times:
                    hub.failures[status] += 1
                    extra = {"Retry-After": hub.behaviour.retry_after} if hub.behaviour.retry_after else {}
                    return self.send(status, b"", extra)
            path = unquote(urlsplit(self.path).path)
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
                return self.model(found[1])
            if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self.file(found[1], found[2], found[3])
            return self.send(404, b"")

        def model(self, name: str) -> None:
            files = hub.repositories.get(name)
            if files is None:
                return self.send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            info = {
                "id": name,
                "sha": COMMIT,
                "siblings": [{"rfilename": file} for file in files],
                "cardData": hub.cards[name],
            }
            return self.send(200, json.dumps(info).encode())

        def file(self, name: str, revision: str, file: str) -> None:
            content = hub.repositories.get(name, {}).get(file)
            if content is None or revision != COMMIT:
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            behaviour = hub.behaviour
            if not file.endswith(".safetensors"):
                return self.send(200, content)
            if behaviour.redirect is not None:
                return self.send(302, b"", {"Location": behaviour.redirect + self.path})
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            encoding = {"Content-Encoding": "gzip"} if behaviour.gzip else {}
            if asked is None or not behaviour.ranges:
                return self.send(200, content, encoding)
            start, stop = int(asked[1]), min(int(asked[2]) + 1, len(content))
            if start >= len(content):
                return self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            size = "*" if behaviour.hide_size else (behaviour.claim or len(content))
            part = content[start + behaviour.shift : stop + behaviour.shift]
            span = f"bytes {start + behaviour.shift}-{stop + behaviour.shift - 1}/{size}"
            return self.send(206, part, {"Content-Range": span, **encoding})

        def send(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
            behaviour = hub.behaviour
            lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(content)}"]
            lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
            head = ("\r\n".join(lines) + "\r\n\r\n").encode()
            self.write(head, behaviour.drip_headers)
            if self.command != "HEAD":
                self.write(content[: behaviour.cut], behaviour.drip, count=True)
            if behaviour.cut is not None and behaviour.cut < len(content):
                self.close_connection = True

        def write(self, content: bytes, drip: float, *, count: bool = False) -> None:
            step = 1 if drip else 65_536
            for position in range(0, len(content), step):
                self.wfile.write(content[position : position + step])
                if count:
                    self.request_seen.sent += step
                if drip:
                    time.sleep(drip)

    return Handler
