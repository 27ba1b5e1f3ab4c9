"""./vc get: files are downloaded completely and checked, or not at all, from a local server with simulated faults."""

import hashlib
import json
import random
import re
import shutil
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.core.test_imports import imported
from tests.disks import ADVICE, everything_in, files_up_to
from vc_core import cli, downloading, published, terminal
from vc_core.commands import get
from vc_core.disk import append
from vc_core.published import MODELS, ModelFile, model_folders, place_of

CONTENT = random.Random(0).randbytes(1_500_000)
CUT = 600_000  # bytes after which connections are cut
NAMES = {"hub": "huggingface.pth", "scope": "modelscope.pth"}


class Server(ThreadingHTTPServer):
    """Both hosts, with one file each, and the faults to simulate."""

    daemon_threads = True

    def handle_error(self, *_):
        """A client that has disconnected, for example after Ctrl-C, is not an error."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.sha256 = CONTENT, hashlib.sha256(CONTENT).hexdigest()
        self.cuts = 0  # number of further connections to cut
        self.ranges = self.lists = True
        self.shift = 0  # error of a range's start, in bytes
        self.status, self.kind, self.redirect = 200, "application/octet-stream", None
        self.requests = []  # headers of each request for a file

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if "/api/" in self.path:
            return self.list()
        server, headers = self.server, self.headers
        server.requests.append(dict(headers))
        if server.status != 200:
            return self.answer(server.status)
        if server.redirect:
            return self.answer(302, Location=server.redirect)
        mark = f'"{hashlib.md5(server.content).hexdigest()}"'
        begin = re.match(r"bytes=(\d+)-", headers.get("Range", "") if server.ranges else "")
        begin = int(begin[1]) + server.shift if begin and headers.get("If-Range", mark) == mark else 0
        length = len(server.content)
        if begin >= length:
            return self.answer(416, Content_Range=f"bytes */{length}")
        part = {"Content-Range": f"bytes {begin}-{length - 1}/{length}"} if begin else {}
        until, server.cuts = (begin + CUT if server.cuts else None), max(0, server.cuts - 1)
        self.answer(206 if begin else 200, server.content[begin:until], length - begin, ETag=mark, **part)

    def list(self):
        server, address = self.server, urlsplit(self.path)
        if not server.lists:
            return self.answer(404 if server.lists is None else 200, b"<html>")
        if address.path == "/api/models/us/hub/tree/main/in/here":
            entry = {"path": f"in/here/{NAMES['hub']}", "size": len(server.content), "oid": "1" * 40}
            listing = [{"type": "directory", "path": "in/here/more"}, entry]
            if server.sha256:
                entry["lfs"] = {"oid": server.sha256}
        else:
            assert address.path == "/api/v1/models/us/scope/repo/files"
            assert parse_qs(address.query, keep_blank_values=True) == {"Revision": ["master"], "Root": [""]}
            entry = {"Path": NAMES["scope"], "Size": len(server.content), "Sha256": server.sha256}
            listing = {"Code": 200, "Data": {"Files": [{"Path": "configuration.json", "Size": 9}, entry]}}
        self.answer(200, json.dumps(listing).encode(), kind="application/json")

    def answer(self, status, body=b"", length=None, kind=None, **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind or self.server.kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server that replaces both hosts, with `tmp_path` as the model folder, and a table with a file on each host."""
    with Server() as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("MODELSCOPE_DOMAIN", server.address)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("VC_MODELS", str(tmp_path))
        monkeypatch.setattr(downloading, "WAITS", (0, 0))
        hub = f"https://huggingface.co/us/hub/resolve/main/in/here/{NAMES['hub']}"
        scope = f"https://www.modelscope.cn/models/us/scope/resolve/master/{NAMES['scope']}"
        table = (
            ModelFile(NAMES["hub"], "for tests", len(CONTENT), None, hub, "network"),
            ModelFile(NAMES["scope"], "for tests", None, None, scope, "network"),
        )
        for module in (get, published):
            monkeypatch.setattr(module, "MODELS", table)
        yield server
        server.shutdown()


@pytest.fixture
def vc_get(server, capsys):
    """Run the command; return its exit status and output."""

    def run(*arguments):
        status = cli.main(["get", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out + "".join(line for line in err.splitlines(True) if line.startswith("vc: "))

    return run


def is_refused(result, *words):
    status, message = result
    assert status == 2 and message.startswith("vc: ") and len(message.splitlines()) == 1
    assert not [word for word in words if word not in message], message
    return True


@pytest.mark.parametrize("name", NAMES.values())
def test_a_file_is_downloaded_completely_and_once(name, server, vc_get, tmp_path):
    assert vc_get(name) == (0, f"{tmp_path / name}: downloaded, 2 MB, SHA-256 correct\n")
    assert (tmp_path / name).read_bytes() == CONTENT and everything_in(tmp_path) == [name]
    assert "Authorization" not in server.requests[0]
    assert vc_get(name.upper()) == (0, f"{tmp_path / name}: already exists\n")
    assert len(server.requests) == 1


def test_the_option_to_sets_the_folder_and_a_renamed_file_is_recognized_by_its_size(server, vc_get, tmp_path):
    (tmp_path / "renamed.pth").write_bytes(CONTENT)
    assert vc_get(NAMES["hub"]) == (0, f"{tmp_path / 'renamed.pth'}: already exists\n")
    to = tmp_path / "a folder" / "of its own"
    assert vc_get(NAMES["hub"], "--to", to)[0] == 0
    assert (to / NAMES["hub"]).read_bytes() == CONTENT


@pytest.mark.parametrize("name", NAMES.values())
def test_a_cut_download_continues_where_it_ended(name, server, vc_get, tmp_path):
    server.cuts = 1
    assert vc_get(name)[0] == 0
    assert (tmp_path / name).read_bytes() == CONTENT and everything_in(tmp_path) == [name]
    first, second = server.requests
    assert "Range" not in first and CUT - 2**18 < int(second["Range"][6:-1]) <= CUT


def test_a_download_that_stays_cut_is_kept_for_the_same_command(server, vc_get, tmp_path):
    server.cuts, server.ranges = 9, False  # each try starts at the beginning, and ends where the first try ended
    name = NAMES["hub"]
    assert is_refused(vc_get(name), name, "bytes received so far", "the same command again to continue")
    assert len(server.requests) == 2 + len(downloading.WAITS)  # the first try received data
    assert everything_in(tmp_path) == [f"{name}.part", f"{name}.part.json"]
    server.cuts, server.ranges = 0, True
    assert vc_get(name)[0] == 0
    assert int(server.requests[-1]["Range"][6:-1]) > CUT - 2**18
    assert (tmp_path / name).read_bytes() == CONTENT and everything_in(tmp_path) == [name]


def test_without_ranges_the_download_starts_again(server, vc_get, tmp_path):
    server.cuts, server.ranges = 1, False
    assert vc_get(NAMES["hub"])[0] == 0
    assert (tmp_path / NAMES["hub"]).read_bytes() == CONTENT


@pytest.mark.parametrize("shift", [1, len(CONTENT)])
def test_another_range_than_requested_is_not_used(shift, server, vc_get, tmp_path):
    server.cuts, server.shift = 1, shift
    assert vc_get(NAMES["hub"])[0] == 0
    assert (tmp_path / NAMES["hub"]).read_bytes() == CONTENT and len(server.requests) == 3


@pytest.mark.parametrize("hashed", [True, False])
def test_a_part_of_another_file_is_not_continued(hashed, server, vc_get, tmp_path):
    """Recognized by the listed hash, or by the server's ETag if it lists no hash."""
    server.sha256 = server.sha256 and hashed and server.sha256
    server.cuts, name = 9, NAMES["scope"]
    server.ranges = False
    assert vc_get(name)[0] == 2
    server.content, server.cuts, server.ranges = CONTENT[::-1], 0, True
    server.sha256 = hashlib.sha256(server.content).hexdigest() if hashed else None
    assert vc_get(name)[0] == 0
    assert ("Range" in server.requests[-1]) != hashed  # a conditional request: If-Range
    assert (tmp_path / name).read_bytes() == CONTENT[::-1]


def test_without_a_hash_it_continues_too_and_reports_that_it_is_not_verified(server, vc_get, tmp_path):
    server.sha256, server.cuts = None, 1
    status, output = vc_get(NAMES["scope"])
    assert status == 0 and "not verified" in output
    assert server.requests[1]["If-Range"] and (tmp_path / NAMES["scope"]).read_bytes() == CONTENT


def test_a_recorded_hash_is_used_if_the_host_lists_none(server, vc_get, tmp_path, monkeypatch):
    server.lists = False
    for sha256, status in ((server.sha256, 0), ("0" * 64, 2)):
        table = (ModelFile("a.pth", "", None, sha256, get.MODELS[0].source, "network"),)
        monkeypatch.setattr(get, "MODELS", table)
        assert vc_get("a.pth", "--to", tmp_path / sha256)[0] == status


def test_a_server_without_lists_may_have_the_file(server, vc_get, tmp_path):
    server.lists = None
    assert vc_get(NAMES["hub"])[0] == 0 and (tmp_path / NAMES["hub"]).read_bytes() == CONTENT
    server.status = 404
    assert is_refused(vc_get(NAMES["hub"], "--to", tmp_path / "again"), "does not exist (status 404)")


def test_values_of_other_types_in_a_list_are_ignored(server, vc_get, monkeypatch):
    monkeypatch.setattr(server, "sha256", 5)
    assert "not verified" in vc_get(NAMES["scope"])[1]


def test_a_part_of_another_program_is_left_alone(server, vc_get, tmp_path):
    part = tmp_path / f"{NAMES['hub']}.part"
    part.write_bytes(b"mine")
    assert is_refused(
        vc_get(NAMES["hub"]), f"{part} already exists, but ./vc get did not write it. Rename or delete it"
    )
    assert part.read_bytes() == b"mine" and server.requests == []


def test_two_processes_do_not_mix_their_data(server, vc_get, tmp_path, monkeypatch):
    part = tmp_path / f"{NAMES['hub']}.part"

    def append_twice(path, block):
        append(path, block)
        append(path, b"another's")

    with monkeypatch.context() as patch:
        patch.setattr(downloading, "append", append_twice)
        message = f"{part}: Another process is downloading this file. Wait until it has ended."
        assert is_refused(vc_get(NAMES["hub"]), message)
    assert part.is_file() and len(server.requests) == 1


def test_a_wrong_hash_leaves_nothing(server, vc_get, tmp_path):
    server.sha256 = "0" * 64
    assert is_refused(vc_get(NAMES["hub"]), "SHA-256", "0" * 64, "was deleted. Try again")
    assert everything_in(tmp_path) == []


def test_a_replaced_file_is_reported(server, vc_get, monkeypatch):
    table = (ModelFile("a.pth", "", None, "0" * 64, get.MODELS[0].source, "network"),)
    monkeypatch.setattr(get, "MODELS", table)
    status, output = vc_get("a.pth")
    assert status == 0 and "The host has replaced this file. Its SHA-256 has changed" in output


def test_a_full_disk_is_reported_before_the_download(server, vc_get, tmp_path, monkeypatch):
    disk = namedtuple("disk", "free")(1_200_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    assert is_refused(vc_get(NAMES["hub"]), str(tmp_path), "has 1 MB free, but the download needs 2 MB more. Free")
    assert server.requests == []


def test_a_full_disk_keeps_the_received_data(server, vc_get, tmp_path):
    name = NAMES["hub"]
    with files_up_to(700_000):
        status, output = vc_get(name)
    assert status == 2 and re.search(rf"{name}\.part {ADVICE}", output)
    received = (tmp_path / f"{name}.part").stat().st_size
    assert 0 < received <= 700_000
    assert vc_get(name)[0] == 0
    assert server.requests[-1]["Range"] == f"bytes={received}-" and (tmp_path / name).read_bytes() == CONTENT


def test_ctrl_c_keeps_the_received_data(server, vc_get, tmp_path, monkeypatch):
    def stop(bars, what, done, total):
        raise KeyboardInterrupt

    name = NAMES["hub"]
    with monkeypatch.context() as patch:
        patch.setattr(terminal.Bars, "__call__", stop)
        status, output = vc_get(name)
    assert status == 130 and "The received data is kept. Run the same command again to continue." in output
    assert vc_get(name)[0] == 0
    assert "Range" in server.requests[-1] and (tmp_path / name).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, ["requires permission (status 401)", "Open https://huggingface.co/us/hub in a browser", "HF_TOKEN"]),
        (403, ["requires permission (status 403)"]),
        (404, ["does not exist (status 404)", "Check the files at https://huggingface.co/us/hub"]),
        (503, ["status 503", "the same command again to continue"]),
    ],
)
def test_refusals_of_a_server_are_reported(status, words, server, vc_get, tmp_path):
    server.status = status
    assert is_refused(vc_get(NAMES["hub"]), *words)
    assert len(server.requests) == (1 + len(downloading.WAITS) if status == 503 else 1)
    assert everything_in(tmp_path) == []


def test_a_web_page_instead_of_the_file_is_refused(server, vc_get, tmp_path):
    server.kind = "text/html; charset=utf-8"
    assert is_refused(vc_get(NAMES["hub"]), "returned a web page instead of the file")
    assert everything_in(tmp_path) == []


def test_a_token_is_sent_only_to_its_host(server, vc_get, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    assert vc_get(*NAMES.values())[0] == 0
    assert [headers.get("Authorization") for headers in server.requests] == ["Bearer hf_secret", None]


@pytest.mark.parametrize("address", ["http://localhost:{port}/a.pth", "file:///etc/passwd", "ftp://127.0.0.1/a.pth"])
def test_only_redirects_to_https_are_followed(address, server, vc_get, tmp_path):
    server.redirect = address.format(port=server.server_port)
    assert is_refused(vc_get(NAMES["hub"]), "InvalidSchema")
    assert len(server.requests) == 1 and everything_in(tmp_path) == []


def test_another_file_of_that_name_is_left_alone(server, vc_get, tmp_path):
    (tmp_path / NAMES["scope"]).write_bytes(b"mine")
    assert is_refused(vc_get(NAMES["scope"]), "has 4 bytes, expected 1500000", "Rename or delete it")
    assert (tmp_path / NAMES["scope"]).read_bytes() == b"mine" and server.requests == []


def test_a_file_that_its_host_no_longer_lists_is_reported(server, vc_get, monkeypatch):
    source = get.MODELS[1].source.replace(NAMES["scope"], "gone.pth")
    monkeypatch.setattr(get, "MODELS", (ModelFile("gone.pth", "", None, None, source, "network"),))
    page = "https://www.modelscope.cn/models/us/scope"
    assert is_refused(vc_get("gone.pth"), "is no longer in its host's list", f"Check the files at {page}")


def test_an_unknown_name_is_reported_before_any_download(server, vc_get):
    assert is_refused(vc_get(NAMES["hub"], "hugingface"), "'hugingface'", f"Did you mean {NAMES['hub']}?")
    assert is_refused(vc_get("x" * 20), "Run ./vc get without a name to list all files")
    assert server.requests == []


# --- The table ------------------------------------------------------------------------------------------------------


def test_without_names_it_lists_them(capsys):
    assert cli.main(["get"]) == 0
    listing = capsys.readouterr().out
    for model in MODELS:
        lines = rf"^{re.escape(model.name)}\b.*\n  {re.escape(model.purpose)}; into "
        assert re.search(lines, listing, re.M), model.name
    assert "non_ema_228000.pth (5.7 GB, not for commercial use)" in listing


def test_every_file_of_the_table_can_be_requested():
    for model in MODELS:
        assert downloading._SOURCE.fullmatch(model.source)["host"] in downloading.HOSTS, model.name


def test_inside_comfyui_files_are_saved_where_its_nodes_read_them(monkeypatch, tmp_path):
    monkeypatch.delenv("VC_MODELS", raising=False)
    places = {model.name: place_of(model) for model in MODELS}
    assert set(places.values()) == {published.PROJECT / "models"}
    monkeypatch.setattr(published, "PROJECT", tmp_path / "custom_nodes" / "pack")
    places = {model.name: place_of(model) for model in MODELS}
    assert places["non_ema_228000.pth"] == places["table5_pidinet.pth"] == tmp_path / "models" / "videocomposer"
    assert places["vae-ft-mse-840000-ema-pruned.safetensors"] == tmp_path / "models" / "vae"
    assert set(places.values()) < set(model_folders())


def test_nothing_else_opens_connections(repository):
    """Checked by the imports in all files of the project's packages."""
    network = {"requests", "urllib3", "urllib.request", "http.client", "httpx", "aiohttp", "ftplib", "huggingface_hub"}
    importers = set()
    for room in ("vc_core", "nodes", "training"):
        for file in (repository / room).rglob("*.py"):
            names = set(imported(file))
            if names & network or any(name.endswith("downloading") for name in names):
                importers.add(file.relative_to(repository).as_posix())
    assert importers == {"vc_core/downloading.py", "vc_core/commands/get.py"}
