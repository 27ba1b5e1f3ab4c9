"""Download files from Hugging Face and ModelScope, with resuming and checks. Only `./vc get` uses this module: nothing
else in this project opens a connection."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from .disk import append, check_place, make_folder, writing
from .errors import UserError, amount, reason
from .progress import Progress

WAITS = (1, 2, 4, 8)
"""Seconds before each retry; a try that received data resets the count."""

TIMEOUT = (15, 60)
"""Seconds to connect, and to wait for the next byte."""


@dataclass(frozen=True)
class Host:
    """How to query a server that stores files."""

    variable: str  # environment variable with another server's address, the same as in the host's own programs
    listing: str  # address of the list of a folder's files
    files: Callable[[Any], dict[str, tuple[int | None, str | None]]]  # from the list: path -> size and SHA-256
    token: str = ""  # environment variable with the user's access token


HOSTS = {
    "huggingface.co": Host(
        "HF_ENDPOINT",
        "/api/models/{repository}/tree/{revision}/{folder}",
        # The `oid` outside `lfs` is git's SHA-1.
        lambda answer: {file["path"]: (file.get("size"), (file.get("lfs") or {}).get("oid")) for file in answer},
        "HF_TOKEN",
    ),
    "www.modelscope.cn": Host(
        "MODELSCOPE_DOMAIN",
        "/api/v1/models/{repository}/repo/files?Revision={revision}&Root={folder}",
        lambda answer: {file["Path"]: (file.get("Size"), file.get("Sha256")) for file in answer["Data"]["Files"]},
    ),
}
_SOURCE = re.compile(
    r"https://(?P<host>[^/]+)(/models)?/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/"
    r"(?P<path>((?P<folder>.+)/)?[^/]+)"
)


@dataclass(frozen=True)
class Identity:
    """Properties that distinguish a file from another version of it."""

    size: int | None = None  # in bytes
    sha256: str | None = None  # in hexadecimal
    etag: str | None = None  # the server's version mark; only if there is no hash


def download(
    source: str, target: Path, size: int | None = None, sha256: str | None = None, progress: Progress | None = None
) -> str:
    """Download a file, or continue an earlier download. The file appears complete or not at all. Returns a text that
    says what was done and checked.

    Received data is in `NAME.part` next to the target, and the file's identity in `NAME.part.json`. Size and SHA-256
    are those that the host lists now, or else the arguments. `progress` counts in MB.

    Args:
        source: `https://huggingface.co/OWNER/NAME/resolve/REVISION/PATH`, or the same on ModelScope. The environment
            variables HF_ENDPOINT and MODELSCOPE_DOMAIN replace these servers; HF_TOKEN identifies the user.

    Raises:
        UserError: the host has no such file, denies access, sends another file, or does not answer; the disk is full.
            Received data is kept for another try, unless it is not the expected file.
    """
    if _size(target) == size:
        return "already exists"
    make_folder(target.parent)
    check_place(target)
    host = HOSTS[_SOURCE.match(source)["host"]]
    part, tried = target.with_name(f"{target.name}.part"), 0
    if part.exists() and not _note(part).exists():
        raise UserError(
            f"{part} already exists, but ./vc get did not write it. Rename or delete it, or choose a folder with --to."
        )
    most = _size(part)
    with _session(host) as session:
        while True:
            try:
                expected = _listed(session, source, host, Identity(size, sha256))
                if target.is_file():
                    return _compared(target, expected)
                _receive(session, source, host, part, expected, progress)
                return _finished(part, target, expected, progress)
            except requests.RequestException as error:
                temporary = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
                received = _size(part)
                most, tried = max(most, received), 0 if received > most else tried + 1
                if not isinstance(error, temporary) or tried > len(WAITS):
                    partial = f" {part} keeps the {amount(received)} received so far." if received else ""
                    raise UserError(
                        f"{source} could not be downloaded ({reason(error, named=True)}).{partial} Check the network, "
                        "then run the same command again to continue."
                    ) from error
                time.sleep(WAITS[max(0, tried - 1)])


def _at(host: Host, address: str) -> str:
    """Return an address on the server that the environment sets for a host."""
    other = os.environ.get(host.variable, "").rstrip("/")
    return re.sub("https://[^/]+", other if "://" in other else f"https://{other}", address) if other else address


def _session(host: Host) -> requests.Session:
    """Return a session that accepts only https, redirects included, and http for a server that the environment sets."""
    session = requests.Session()
    del session.adapters["http://"]
    if (other := _at(host, "https://host/")).startswith("http://"):
        session.mount(other, HTTPAdapter())
    session.headers["Accept-Encoding"] = "identity"  # without compression, because ranges count the file's own bytes
    if token := os.environ.get(host.token, "").strip():
        session.headers["Authorization"] = f"Bearer {token}"  # requests removes it when redirected to another host
    return session


def _request(session: requests.Session, address: str, source: str, **headers: str) -> requests.Response:
    """Return an answer with content. Raises `requests.ConnectionError` for temporary errors, `UserError` for others."""
    answer = session.get(address, headers=headers, stream=True, timeout=TIMEOUT)
    status, page = answer.status_code, source.partition("/resolve/")[0]
    if status == 429 or status >= 500:
        raise requests.ConnectionError(f"status {status}")
    if status in (401, 403):
        raise UserError(
            f"{source} requires permission (status {status}). Open {page} in a browser and accept its conditions. Then "
            "set HF_TOKEN to an access token, or download the file there."
        )
    if status >= 400 and status != 416:
        raise UserError(f"{source} does not exist (status {status}). Check the files at {page}.")
    return answer


def _listed(session: requests.Session, source: str, host: Host, default: Identity) -> Identity:
    """Return the size and hash that the host lists for a file, or those of `default` if it lists none."""
    place = {key: value or "" for key, value in _SOURCE.match(source).groupdict().items()}
    address = _at(host, f"https://{place['host']}{host.listing.format(**place)}".rstrip("/"))
    try:
        with _request(session, address, source) as answer:
            files = host.files(answer.json())
    except (UserError, KeyError, TypeError, AttributeError, requests.exceptions.JSONDecodeError):
        # The server has no such list. If the file does not exist either, the request for the file will say so.
        return default
    if place["path"] not in files:
        page = source.partition("/resolve/")[0]
        raise UserError(f"{source} is no longer in its host's list of files. Check the files at {page}.")
    listed = zip(files[place["path"]], (int, str), strict=True)
    size, sha256 = (value if isinstance(value, kind) else None for value, kind in listed)
    if default.sha256 and sha256 and sha256.lower() != default.sha256:
        warnings.warn(f"{source}: The host has replaced this file. Its SHA-256 has changed.", stacklevel=2)
    return Identity(default.size if size is None else size, sha256 or default.sha256)


def _receive(
    session: requests.Session, source: str, host: Host, part: Path, expected: Identity, progress: Progress | None
) -> None:
    """Download the missing bytes of a part, or the complete file if the part is or may be of another file."""
    before, received = _noted(part), _size(part)
    same_file = replace(before, etag=None) == expected and (expected.sha256 or before.etag)
    if not same_file or received > (expected.size or received):
        received = 0
    if received and received == expected.size:
        return
    free = shutil.disk_usage(part.parent).free
    if expected.size is not None and free < expected.size - received:
        raise UserError(
            f"{part.parent} has {amount(free)} free, but the download needs {amount(expected.size - received)} more. "
            "Free some disk space, or choose another folder with --to."
        )
    headers = {"Range": f"bytes={received}-"} if received else {}
    if received and not expected.sha256:
        headers["If-Range"] = before.etag
    with _request(session, _at(host, source), source, **headers) as answer:
        if "html" in answer.headers.get("Content-Type", ""):
            raise UserError(f"{source} returned a web page instead of the file. Open it in a browser to see why.")
        continues = answer.headers.get("Content-Range", "").startswith(f"bytes {received}-")
        if not continues:
            received = 0
            etag = answer.headers.get("ETag", "")
            # A weak ETag does not identify the exact bytes.
            mark = etag if not expected.sha256 and not etag.startswith("W/") else None
            with writing(part):
                part.unlink(missing_ok=True)
                _note(part).write_text(json.dumps(asdict(replace(expected, etag=mark or None))), encoding="utf-8")
        if answer.status_code in (206, 416) and not continues:  # not from the beginning either
            raise requests.ConnectionError("the server does not continue where the last try ended")
        total = expected.size or received + int(answer.headers.get("Content-Length", 0))
        for block in answer.iter_content(2**18):
            if _size(part) != received:
                raise UserError(f"{part}: Another process is downloading this file. Wait until it has ended.")
            append(part, block)
            received += len(block)
            if progress is not None:
                progress(f"{part.stem} (MB)", received // 10**6, max(total, received) // 10**6)
    if received < total:  # if the server sends no Content-Length, requests does not notice that the connection was cut
        raise requests.ConnectionError(f"the connection was cut after {amount(received)} of {amount(total)}")


def _finished(part: Path, target: Path, expected: Identity, progress: Progress | None) -> str:
    from .checkpoint.files import sha256

    size = _size(part)
    wrong = f"has {size} bytes, expected {expected.size}" if expected.size not in (None, size) else ""
    if not wrong and expected.sha256 and (digest := sha256(part, progress)) != expected.sha256.lower():
        wrong = f"has the SHA-256 {digest}, expected {expected.sha256}"
    if wrong:
        part.unlink()
        _note(part).unlink(missing_ok=True)
        raise UserError(
            f"{target}: The downloaded file {wrong}. It is damaged or another file, and was deleted. Try again."
        )
    with writing(target):
        os.replace(part, target)
        _note(part).unlink(missing_ok=True)
    checked = "SHA-256 correct" if expected.sha256 else "not verified, because the host lists no SHA-256"
    return f"downloaded, {amount(size)}, {checked}"


def _compared(target: Path, expected: Identity) -> str:
    if expected.size in (None, target.stat().st_size):
        return "already exists"
    raise UserError(
        f"{target} already exists, but has {target.stat().st_size} bytes, expected {expected.size}. It is another file "
        "or incomplete. Rename or delete it, or choose another folder with --to."
    )


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _noted(part: Path) -> Identity:
    """Return the stored identity of the file that a part belongs to; empty if there is none."""
    with suppress(OSError, ValueError, TypeError):
        return Identity(**json.loads(_note(part).read_text(encoding="utf-8")))
    return Identity()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
