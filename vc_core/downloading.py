"""Files from Hugging Face and ModelScope, resumable and checked. `./vc get` alone comes here: nothing else of this
project opens a connection."""

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
"""Seconds before each further try; a try that brought something begins the count anew."""

TIMEOUT = (15, 60)
"""Seconds: to connect, and without a byte."""


@dataclass(frozen=True)
class Host:
    """What a host that keeps files is asked."""

    variable: str  # of the environment: another server in its place, as its own programs know it
    listing: str  # address of the list of a folder's files
    files: Callable[[Any], dict[str, tuple[int | None, str | None]]]  # of that: by path the size and the SHA-256
    token: str = ""  # of the environment: what it knows the user by


HOSTS = {
    "huggingface.co": Host(
        "HF_ENDPOINT",
        "/api/models/{repository}/tree/{revision}/{folder}",
        # An `oid` beside `lfs` is git's, of SHA-1.
        lambda told: {file["path"]: (file.get("size"), (file.get("lfs") or {}).get("oid")) for file in told},
        "HF_TOKEN",
    ),
    "www.modelscope.cn": Host(
        "MODELSCOPE_DOMAIN",
        "/api/v1/models/{repository}/repo/files?Revision={revision}&Root={folder}",
        lambda told: {file["Path"]: (file.get("Size"), file.get("Sha256")) for file in told["Data"]["Files"]},
    ),
}
_SOURCE = re.compile(
    r"https://(?P<host>[^/]+)(/models)?/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/"
    r"(?P<path>((?P<folder>.+)/)?[^/]+)"
)


@dataclass(frozen=True)
class Identity:
    """What tells a file from another of its name."""

    size: int | None = None  # in bytes
    sha256: str | None = None  # in hexadecimal
    etag: str | None = None  # the server's own mark; only where there is no hash


def download(
    source: str, target: Path, size: int | None = None, sha256: str | None = None, progress: Progress | None = None
) -> str:
    """Downloads a file, or goes on where an earlier try ended; it appears whole or not at all. Returns what was done
    and how far it was checked, in words.

    What has come lies in `NAME.part` beside the target, and what file that is of in `NAME.part.json`. Size and SHA-256
    are those of the host's list at this time, or else the given ones. `progress` counts in MB.

    Args:
        source: `https://huggingface.co/OWNER/NAME/resolve/REVISION/PATH`, or the same on ModelScope. The environment's
            HF_ENDPOINT and MODELSCOPE_DOMAIN name other servers than these, and HF_TOKEN the user.

    Raises:
        UserError: the host has no such file, does not give it, gives another one, or stays away; the disk is full. What
            has come stays for another try, but where it is not the file.
    """
    if _size(target) == size:
        return "is already there"
    make_folder(target.parent)
    check_place(target)
    host = HOSTS[_SOURCE.match(source)["host"]]
    part, tried = target.with_name(f"{target.name}.part"), 0
    if part.exists() and not _note(part).exists():
        raise UserError(f"{part}: is there, and not of this command: rename or delete it, or name a folder with --to.")
    most = _size(part)
    with _session(host) as session:
        while True:
            try:
                wanted = _listed(session, source, host, Identity(size, sha256))
                if target.is_file():
                    return _compared(target, wanted)
                _receive(session, source, host, part, wanted, progress)
                return _finished(part, target, wanted, progress)
            except requests.RequestException as error:
                passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
                came = _size(part)
                most, tried = max(most, came), 0 if came > most else tried + 1
                if not isinstance(error, passing) or tried > len(WAITS):
                    kept = f"; {amount(came)} of it are kept in {part}" if came else ""
                    raise UserError(
                        f"{source}: cannot be had ({reason(error, named=True)}){kept}: look at the network, then run "
                        "the same command to go on."
                    ) from error
                time.sleep(WAITS[max(0, tried - 1)])


def _at(host: Host, address: str) -> str:
    """An address, on the server that the environment names for a host."""
    other = os.environ.get(host.variable, "").rstrip("/")
    return re.sub("https://[^/]+", other if "://" in other else f"https://{other}", address) if other else address


def _session(host: Host) -> requests.Session:
    """Takes https alone, wherever it is sent on to; plain http of the server that the environment names."""
    session = requests.Session()
    del session.adapters["http://"]
    if (other := _at(host, "https://host/")).startswith("http://"):
        session.mount(other, HTTPAdapter())
    session.headers["Accept-Encoding"] = "identity"  # the file's own bytes, which a range counts
    if token := os.environ.get(host.token, "").strip():
        session.headers["Authorization"] = f"Bearer {token}"  # requests leaves it out where it is sent on to others
    return session


def _asked(session: requests.Session, address: str, source: str, **headers: str) -> requests.Response:
    """An answer with content. Raises `requests.ConnectionError` for what may pass, `UserError` for what will not."""
    answer = session.get(address, headers=headers, stream=True, timeout=TIMEOUT)
    status, page = answer.status_code, source.partition("/resolve/")[0]
    if status == 429 or status >= 500:
        raise requests.ConnectionError(f"status {status}")
    if status in (401, 403):
        raise UserError(
            f"{source}: is not given without permission (status {status}): see {page} with a browser, accept what it "
            "asks for, and put an access token into HF_TOKEN, or download it there."
        )
    if status >= 400 and status != 416:
        raise UserError(f"{source}: is not there (status {status}): see what {page} has.")
    return answer


def _listed(session: requests.Session, source: str, host: Host, known: Identity) -> Identity:
    """What the host says of a file, with what is `known` of it where it says nothing."""
    place = {key: value or "" for key, value in _SOURCE.match(source).groupdict().items()}
    address = _at(host, f"https://{place['host']}{host.listing.format(**place)}".rstrip("/"))
    try:
        with _asked(session, address, source) as answer:
            files = host.files(answer.json())
    except (UserError, KeyError, TypeError, AttributeError, requests.exceptions.JSONDecodeError):
        # A server without such lists; what is true of the file too, its own answer will say.
        return known
    if place["path"] not in files:
        page = source.partition("/resolve/")[0]
        raise UserError(f"{source}: is not in its host's list of files any more: see what {page} has.")
    told = zip(files[place["path"]], (int, str), strict=True)
    size, sha256 = (value if isinstance(value, kind) else None for value, kind in told)
    if known.sha256 and sha256 and sha256.lower() != known.sha256:
        warnings.warn(f"{source}: its host has replaced the file that this project knows.", stacklevel=2)
    return Identity(known.size if size is None else size, sha256 or known.sha256)


def _receive(
    session: requests.Session, source: str, host: Host, part: Path, wanted: Identity, progress: Progress | None
) -> None:
    """Brings what a part lacks; the whole file, where the part is of another or that cannot be told."""
    before, come = _noted(part), _size(part)
    known = replace(before, etag=None) == wanted and (wanted.sha256 or before.etag)
    if not known or come > (wanted.size or come):
        come = 0
    if come and come == wanted.size:
        return
    free = shutil.disk_usage(part.parent).free
    if wanted.size is not None and free < wanted.size - come:
        raise UserError(
            f"{part.parent}: has {amount(free)} free, and {amount(wanted.size - come)} are still to come: make room, "
            "or name another folder with --to."
        )
    headers = {"Range": f"bytes={come}-"} if come else {}
    if come and not wanted.sha256:
        headers["If-Range"] = before.etag
    with _asked(session, _at(host, source), source, **headers) as answer:
        if "html" in answer.headers.get("Content-Type", ""):
            raise UserError(f"{source}: gives a web page and not the file: see with a browser what it asks for.")
        goes_on = answer.headers.get("Content-Range", "").startswith(f"bytes {come}-")
        if not goes_on:
            come = 0
            etag = answer.headers.get("ETag", "")
            mark = etag if not wanted.sha256 and not etag.startswith("W/") else None  # a weak one marks no bytes
            with writing(part):
                part.unlink(missing_ok=True)
                _note(part).write_text(json.dumps(asdict(replace(wanted, etag=mark or None))), encoding="utf-8")
        if answer.status_code in (206, 416) and not goes_on:  # not from the beginning either
            raise requests.ConnectionError("the server does not go on where the last try ended")
        total = wanted.size or come + int(answer.headers.get("Content-Length", 0))
        for block in answer.iter_content(2**18):
            if _size(part) != come:
                raise UserError(f"{part}: another process downloads it too: wait until that has ended.")
            append(part, block)
            come += len(block)
            if progress is not None:
                progress(f"{part.stem} (MB)", come // 10**6, max(total, come) // 10**6)
    if come < total:  # servers that tell no length of what they send
        raise requests.ConnectionError(f"the connection was cut after {amount(come)} of {amount(total)}")


def _finished(part: Path, target: Path, wanted: Identity, progress: Progress | None) -> str:
    from .checkpoint.files import sha256

    size = _size(part)
    wrong = f"is {size} bytes long, and {wanted.size} were listed" if wanted.size not in (None, size) else ""
    if not wrong and wanted.sha256 and (found := sha256(part, progress)) != wanted.sha256.lower():
        wrong = f"has the SHA-256 {found}, and {wanted.sha256} was listed"
    if wrong:
        part.unlink()
        _note(part).unlink(missing_ok=True)
        raise UserError(f"{target}: what came {wrong}, so it is damaged or not that file, and was deleted: try again.")
    with writing(target):
        os.replace(part, target)
        _note(part).unlink(missing_ok=True)
    return f"downloaded, {amount(size)}, {'SHA-256 right' if wanted.sha256 else 'not verified: no SHA-256 is listed'}"


def _compared(target: Path, wanted: Identity) -> str:
    if wanted.size in (None, target.stat().st_size):
        return "is already there"
    raise UserError(
        f"{target}: is there already, with {target.stat().st_size} bytes, and {wanted.size} are listed: it is another "
        "one or cut off; rename or delete it, or name another folder with --to."
    )


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _noted(part: Path) -> Identity:
    """Which file a part is of, as far as that was noted."""
    with suppress(OSError, ValueError, TypeError):
        return Identity(**json.loads(_note(part).read_text(encoding="utf-8")))
    return Identity()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
