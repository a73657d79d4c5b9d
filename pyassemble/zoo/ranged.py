"""Reading files over HTTP, whole or in part, from servers that are slow, broken, or say what is not true.

The client is the one of ``huggingface_hub``, with whatever proxies and certificates it was set up with. It follows
redirects and takes the authorization off where one leads to another host.
"""

from __future__ import annotations

import queue
import re
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pyassemble.errors import HubError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.5

#: A server that asks for a longer pause is not waited for.
LONGEST_PAUSE_SECONDS = 10.0

# A large header is given more time than a small one, at this rate.
_SLOWEST_BYTES_PER_SECOND = 100_000

_TEMPORARY = (408, 429, 500, 502, 503, 504)
_BEYOND_THE_END = 416
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_SAID_BY_THE_HUB = "X-Error-Message"


@dataclass(frozen=True)
class Part:
    """A part of a file.

    Attributes:
        content: Its bytes; fewer than asked for where the file ends.
        total: Size of the whole file; None where the server does not say.
    """

    content: bytes
    total: int | None


class _TemporaryError(Exception):
    """What may go better at the next attempt."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


def fetch(url: str, *, headers: Mapping[str, str], limit: int, timeout: float) -> bytes:
    """A whole file of at most ``limit`` bytes.

    Args:
        url: Its address.
        headers: To send.
        limit: Largest size that is accepted.
        timeout: Seconds an answer may take, from the first byte to the last.

    Raises:
        HubError: It cannot be had, also after some attempts, or is larger.
    """

    def read(response: Any, abandoned: threading.Event) -> bytes:
        if response.status_code != 200:
            raise _refusal(url, response)
        content = bytearray()
        for chunk in response.iter_bytes():
            content += chunk
            if abandoned.is_set() or len(content) > limit:
                break
        if len(content) > limit:
            raise HubError(f"{url} is larger than the {limit} bytes that are read of such a file")
        return bytes(content)

    return _with_attempts(url, headers, timeout, read)


def fetch_part(url: str, *, headers: Mapping[str, str], start: int, stop: int, timeout: float) -> Part:
    """Bytes ``start`` to ``stop`` of a file, without the rest of it.

    A server that does not know ranges sends the whole file; the connection is then closed once the part has come.

    Args:
        url: The file's address.
        headers: To send.
        start: First byte.
        stop: The byte after the last.
        timeout: Seconds an answer may take; more for a large part.

    Raises:
        HubError: It cannot be had, also after some attempts.
    """

    def read(response: Any, abandoned: threading.Event) -> Part:
        skip, total = _position(url, response, start)
        wanted = (stop if total is None else min(stop, total)) - start
        content = bytearray()
        for chunk in response.iter_bytes() if wanted > 0 else ():
            content += chunk[skip:]
            skip = max(0, skip - len(chunk))
            if len(content) >= wanted or abandoned.is_set():
                break
        if total is not None and len(content) < wanted:
            raise _TemporaryError(f"it ended after {len(content)} of {wanted} bytes")
        return Part(bytes(content[: max(0, wanted)]), total)

    # Compressed, the bytes of the answer would be others than those of the file.
    headers = {**headers, "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    return _with_attempts(url, headers, timeout + (stop - start) / _SLOWEST_BYTES_PER_SECOND, read)


def _position(url: str, response: Any, start: int) -> tuple[int, int | None]:
    """How many bytes of an answer lie before the part, and the size of the whole file."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise HubError(f"{url} is sent compressed, so that no part of it can be read")
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return start, int(length) if length.isdecimal() else None
    if response.status_code == _BEYOND_THE_END:
        size = response.headers.get("Content-Range", "").rpartition("/")[2]
        return 0, int(size) if size.isdecimal() else start
    if response.status_code != 206:
        raise _refusal(url, response)
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != start:
        raise HubError(
            f"{url}: asked for the bytes from {start}, the server sent {response.headers.get('Content-Range')!r}"
        )
    return 0, None if found[3] == "*" else int(found[3])


def _refusal(url: str, response: Any) -> Exception:
    status = f"{response.status_code} {response.reason_phrase}".strip()
    said = response.headers.get(_SAID_BY_THE_HUB)
    reason = f"{status}: {_one_line(said)}" if said else status
    if response.status_code not in _TEMPORARY:
        return HubError(f"{url}: the server answers {reason}")
    pause = response.headers.get("Retry-After", "")
    return _TemporaryError(f"the server answers {reason}", float(pause) if pause.isdecimal() else None)


def _with_attempts(
    url: str, headers: Mapping[str, str], timeout: float, read: Callable[[Any, threading.Event], T]
) -> T:
    pause = FIRST_PAUSE_SECONDS
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _in_time(timeout, lambda abandoned: _exchange(url, headers, timeout, read, abandoned))
        except _TemporaryError as error:
            wait = pause if error.pause is None else error.pause
            if attempt == ATTEMPTS or wait > LONGEST_PAUSE_SECONDS:
                later = f"; it asks to come back in {wait:g} s" if wait > LONGEST_PAUSE_SECONDS else ""
                raise HubError(f"{url}: {error}{later} (attempt {attempt} of {ATTEMPTS})") from error.__cause__
        time.sleep(wait)
        pause *= 2
    raise AssertionError("the last attempt returns or raises")


def _in_time(timeout: float, work: Callable[[threading.Event], T]) -> T:
    """Runs work in a thread and gives it up after a time.

    The client's own limits do not do: they bound the wait for the next byte, which a server can send for ever, and not
    at all the look-up of a host's name.
    """
    results: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
    abandoned = threading.Event()

    def run() -> None:
        try:
            results.put((work(abandoned), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = results.get(timeout=timeout)
    except queue.Empty:
        raise _TemporaryError(f"no complete answer within {timeout:.3g} s") from None
    finally:
        abandoned.set()
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _exchange(
    url: str,
    headers: Mapping[str, str],
    timeout: float,
    read: Callable[[Any, threading.Event], T],
    abandoned: threading.Event,
) -> T:
    from huggingface_hub import get_session, is_offline_mode
    from huggingface_hub.errors import OfflineModeIsEnabled

    if is_offline_mode():
        raise HubError(f"{url} cannot be read: offline mode is on (HF_HUB_OFFLINE)")
    session = get_session()
    client = _client_library(session)
    try:
        with session.stream("GET", url, headers=dict(headers), timeout=timeout, follow_redirects=True) as response:
            return read(response, abandoned)
    except OfflineModeIsEnabled as error:
        raise HubError(f"{url} cannot be read: offline mode is on (HF_HUB_OFFLINE)") from error
    except (client.TimeoutException, client.NetworkError, client.RemoteProtocolError) as error:
        raise _TemporaryError(_one_line(f"{type(error).__name__}: {error}")) from error
    except (client.HTTPError, client.InvalidURL) as error:
        raise HubError(f"{url} cannot be read: {_one_line(f'{type(error).__name__}: {error}')}") from error


def _client_library(session: object) -> Any:
    """The HTTP library of the installed huggingface_hub, of which only the exceptions are needed here."""
    for name in ("httpx2", "httpx"):  # since huggingface_hub 2 and 1
        library = sys.modules.get(name)
        if library is not None and isinstance(session, library.Client):
            return library
    raise HubError(f"huggingface_hub with {type(session).__module__} as its HTTP client is not supported; update it")


def _one_line(text: str) -> str:
    return " ".join(text.split())
