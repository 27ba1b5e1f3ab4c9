"""./vc get: files come whole and checked or not at all, from a server on this machine that does what networks do."""

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
    """Both hosts, with one file each, and what may go wrong with them."""

    daemon_threads = True

    def handle_error(self, *_):
        """Clients that have left, as after Ctrl-C, are no error."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.sha256 = CONTENT, hashlib.sha256(CONTENT).hexdigest()
        self.cuts = 0  # so many further connections are cut
        self.ranges = self.lists = True
        self.shift = 0  # bytes by which it misses where a range begins
        self.status, self.kind, self.sent_on = 200, "application/octet-stream", None
        self.asked = []  # headers of each request for a file

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
        server.asked.append(dict(headers))
        if server.status != 200:
            return self.answer(server.status)
        if server.sent_on:
            return self.answer(302, Location=server.sent_on)
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
            told = [{"type": "directory", "path": "in/here/more"}, entry]
            if server.sha256:
                entry["lfs"] = {"oid": server.sha256}
        else:
            assert address.path == "/api/v1/models/us/scope/repo/files"
            assert parse_qs(address.query, keep_blank_values=True) == {"Revision": ["master"], "Root": [""]}
            entry = {"Path": NAMES["scope"], "Size": len(server.content), "Sha256": server.sha256}
            told = {"Code": 200, "Data": {"Files": [{"Path": "configuration.json", "Size": 9}, entry]}}
        self.answer(200, json.dumps(told).encode(), kind="application/json")

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
    """A server in the place of both hosts, the folder of models in `tmp_path`, and a table of a file on each."""
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
    """The command's exit status, and what it says."""

    def run(*arguments):
        status = cli.main(["get", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out + "".join(line for line in err.splitlines(True) if line.startswith("vc: "))

    return run


def is_refused(said, *words):
    status, told = said
    assert status == 2 and told.startswith("vc: ") and len(told.splitlines()) == 1
    assert not [word for word in words if word not in told], told
    return True


@pytest.mark.parametrize("name", NAMES.values())
def test_a_file_comes_whole_and_once(name, server, vc_get, tmp_path):
    assert vc_get(name) == (0, f"{tmp_path / name}: downloaded, 2 MB, SHA-256 right\n")
    assert (tmp_path / name).read_bytes() == CONTENT and everything_in(tmp_path) == [name]
    assert "Authorization" not in server.asked[0]
    assert vc_get(name.upper()) == (0, f"{tmp_path / name}: is already there\n")
    assert len(server.asked) == 1


def test_it_goes_into_the_folder_that_is_named_and_a_file_of_another_name_is_known_by_its_size(
    server, vc_get, tmp_path
):
    (tmp_path / "renamed.pth").write_bytes(CONTENT)
    assert vc_get(NAMES["hub"]) == (0, f"{tmp_path / 'renamed.pth'}: is already there\n")
    to = tmp_path / "a folder" / "of its own"
    assert vc_get(NAMES["hub"], "--to", to)[0] == 0
    assert (to / NAMES["hub"]).read_bytes() == CONTENT


@pytest.mark.parametrize("name", NAMES.values())
def test_a_cut_connection_goes_on_where_it_ended(name, server, vc_get, tmp_path):
    server.cuts = 1
    assert vc_get(name)[0] == 0
    assert (tmp_path / name).read_bytes() == CONTENT and everything_in(tmp_path) == [name]
    first, second = server.asked
    assert "Range" not in first and CUT - 2**18 < int(second["Range"][6:-1]) <= CUT


def test_one_that_stays_cut_is_kept_for_the_same_command(server, vc_get, tmp_path):
    server.cuts, server.ranges = 9, False  # each try begins anew, and ends where the first did
    name = NAMES["hub"]
    assert is_refused(vc_get(name), name, "bytes of it are kept in", "the same command to go on")
    assert len(server.asked) == 2 + len(downloading.WAITS)  # the first has brought something
    assert everything_in(tmp_path) == [f"{name}.part", f"{name}.part.json"]
    server.cuts, server.ranges = 0, True
    assert vc_get(name)[0] == 0
    assert int(server.asked[-1]["Range"][6:-1]) > CUT - 2**18
    assert (tmp_path / name).read_bytes() == CONTENT and everything_in(tmp_path) == [name]


def test_a_server_without_ranges_begins_anew(server, vc_get, tmp_path):
    server.cuts, server.ranges = 1, False
    assert vc_get(NAMES["hub"])[0] == 0
    assert (tmp_path / NAMES["hub"]).read_bytes() == CONTENT


@pytest.mark.parametrize("shift", [1, len(CONTENT)])
def test_a_server_that_gives_another_range_is_not_believed(shift, server, vc_get, tmp_path):
    server.cuts, server.shift = 1, shift
    assert vc_get(NAMES["hub"])[0] == 0
    assert (tmp_path / NAMES["hub"]).read_bytes() == CONTENT and len(server.asked) == 3


@pytest.mark.parametrize("hashed", [True, False])
def test_a_part_of_another_file_is_not_gone_on_with(hashed, server, vc_get, tmp_path):
    """Known by the listed hash, or by the server's own mark where it lists none."""
    server.sha256 = server.sha256 and hashed and server.sha256
    server.cuts, name = 9, NAMES["scope"]
    server.ranges = False
    assert vc_get(name)[0] == 2
    server.content, server.cuts, server.ranges = CONTENT[::-1], 0, True
    server.sha256 = hashlib.sha256(server.content).hexdigest() if hashed else None
    assert vc_get(name)[0] == 0
    assert ("Range" in server.asked[-1]) != hashed  # asked for on condition: If-Range
    assert (tmp_path / name).read_bytes() == CONTENT[::-1]


def test_without_a_hash_it_goes_on_too_and_says_that_it_is_not_verified(server, vc_get, tmp_path):
    server.sha256, server.cuts = None, 1
    status, said = vc_get(NAMES["scope"])
    assert status == 0 and "not verified" in said
    assert server.asked[1]["If-Range"] and (tmp_path / NAMES["scope"]).read_bytes() == CONTENT


def test_a_recorded_hash_counts_where_the_host_lists_none(server, vc_get, tmp_path, monkeypatch):
    server.lists = False
    for sha256, status in ((server.sha256, 0), ("0" * 64, 2)):
        table = (ModelFile("a.pth", "", None, sha256, get.MODELS[0].source, "network"),)
        monkeypatch.setattr(get, "MODELS", table)
        assert vc_get("a.pth", "--to", tmp_path / sha256)[0] == status


def test_a_server_that_knows_of_no_lists_may_have_the_file(server, vc_get, tmp_path):
    server.lists = None
    assert vc_get(NAMES["hub"])[0] == 0 and (tmp_path / NAMES["hub"]).read_bytes() == CONTENT
    server.status = 404
    assert is_refused(vc_get(NAMES["hub"], "--to", tmp_path / "again"), "is not there (status 404)")


def test_a_list_of_values_of_other_kinds_tells_nothing(server, vc_get, monkeypatch):
    monkeypatch.setattr(server, "sha256", 5)
    assert "not verified" in vc_get(NAMES["scope"])[1]


def test_a_part_of_another_program_is_left_alone(server, vc_get, tmp_path):
    part = tmp_path / f"{NAMES['hub']}.part"
    part.write_bytes(b"mine")
    assert is_refused(vc_get(NAMES["hub"]), f"{part}: is there, and not of this command: rename or delete it")
    assert part.read_bytes() == b"mine" and server.asked == []


def test_two_processes_do_not_mix_what_comes(server, vc_get, tmp_path, monkeypatch):
    part = tmp_path / f"{NAMES['hub']}.part"

    def of_another(path, block):
        append(path, block)
        append(path, b"another's")

    with monkeypatch.context() as patch:
        patch.setattr(downloading, "append", of_another)
        assert is_refused(vc_get(NAMES["hub"]), f"{part}: another process downloads it too: wait until that has ended")
    assert part.is_file() and len(server.asked) == 1


def test_a_wrong_hash_leaves_nothing(server, vc_get, tmp_path):
    server.sha256 = "0" * 64
    assert is_refused(vc_get(NAMES["hub"]), "SHA-256", "0" * 64, "was deleted: try again")
    assert everything_in(tmp_path) == []


def test_a_replaced_file_is_told(server, vc_get, monkeypatch):
    table = (ModelFile("a.pth", "", None, "0" * 64, get.MODELS[0].source, "network"),)
    monkeypatch.setattr(get, "MODELS", table)
    status, said = vc_get("a.pth")
    assert status == 0 and "its host has replaced the file that this project knows" in said


def test_a_disk_without_room_is_told_before(server, vc_get, tmp_path, monkeypatch):
    disk = namedtuple("disk", "free")(1_200_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    assert is_refused(vc_get(NAMES["hub"]), str(tmp_path), "has 1 MB free, and 2 MB are still to come: make room")
    assert server.asked == []


def test_a_full_disk_keeps_what_has_come(server, vc_get, tmp_path):
    name = NAMES["hub"]
    with files_up_to(700_000):
        status, said = vc_get(name)
    assert status == 2 and re.search(rf"{name}\.part {ADVICE}", said)
    come = (tmp_path / f"{name}.part").stat().st_size
    assert 0 < come <= 700_000
    assert vc_get(name)[0] == 0
    assert server.asked[-1]["Range"] == f"bytes={come}-" and (tmp_path / name).read_bytes() == CONTENT


def test_ctrl_c_keeps_what_has_come(server, vc_get, tmp_path, monkeypatch):
    def stop(bars, what, done, total):
        raise KeyboardInterrupt

    name = NAMES["hub"]
    with monkeypatch.context() as patch:
        patch.setattr(terminal.Bars, "__call__", stop)
        status, said = vc_get(name)
    assert status == 130 and "what has come is kept, and the same command goes on" in said
    assert vc_get(name)[0] == 0
    assert "Range" in server.asked[-1] and (tmp_path / name).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, ["without permission", "https://huggingface.co/us/hub with a browser", "HF_TOKEN"]),
        (403, ["without permission"]),
        (404, ["is not there (status 404)", "see what https://huggingface.co/us/hub has"]),
        (503, ["status 503", "the same command to go on"]),
    ],
)
def test_what_a_server_refuses_is_told(status, words, server, vc_get, tmp_path):
    server.status = status
    assert is_refused(vc_get(NAMES["hub"]), *words)
    assert len(server.asked) == (1 + len(downloading.WAITS) if status == 503 else 1)
    assert everything_in(tmp_path) == []


def test_a_web_page_is_not_taken_for_the_file(server, vc_get, tmp_path):
    server.kind = "text/html; charset=utf-8"
    assert is_refused(vc_get(NAMES["hub"]), "gives a web page and not the file")
    assert everything_in(tmp_path) == []


def test_a_token_goes_to_its_host_alone(server, vc_get, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    assert vc_get(*NAMES.values())[0] == 0
    assert [headers.get("Authorization") for headers in server.asked] == ["Bearer hf_secret", None]


@pytest.mark.parametrize("address", ["http://localhost:{port}/a.pth", "file:///etc/passwd", "ftp://127.0.0.1/a.pth"])
def test_it_is_sent_on_to_https_alone(address, server, vc_get, tmp_path):
    server.sent_on = address.format(port=server.server_port)
    assert is_refused(vc_get(NAMES["hub"]), "InvalidSchema")
    assert len(server.asked) == 1 and everything_in(tmp_path) == []


def test_another_file_of_that_name_is_left_alone(server, vc_get, tmp_path):
    (tmp_path / NAMES["scope"]).write_bytes(b"mine")
    assert is_refused(vc_get(NAMES["scope"]), "with 4 bytes, and 1500000 are listed", "rename or delete it")
    assert (tmp_path / NAMES["scope"]).read_bytes() == b"mine" and server.asked == []


def test_a_file_that_its_host_no_longer_lists_is_told(server, vc_get, monkeypatch):
    source = get.MODELS[1].source.replace(NAMES["scope"], "gone.pth")
    monkeypatch.setattr(get, "MODELS", (ModelFile("gone.pth", "", None, None, source, "network"),))
    assert is_refused(vc_get("gone.pth"), "is not in its host's list", "https://www.modelscope.cn/models/us/scope has")


def test_an_unknown_name_is_told_before_anything_is_downloaded(server, vc_get):
    assert is_refused(vc_get(NAMES["hub"], "hugingface"), "hugingface", f"expected {NAMES['hub']}")
    assert is_refused(vc_get("x" * 20), "expected one of those that it lists")
    assert server.asked == []


# --- The table ------------------------------------------------------------------------------------------------------


def test_without_names_it_lists_them(capsys):
    assert cli.main(["get"]) == 0
    said = capsys.readouterr().out
    for model in MODELS:
        assert re.search(rf"^{re.escape(model.name)}\b.*\n  {re.escape(model.purpose)}; into ", said, re.M), model.name
    assert "non_ema_228000.pth (5.7 GB, not for commercial use)" in said


def test_every_file_of_the_table_can_be_asked_for():
    for model in MODELS:
        assert downloading._SOURCE.fullmatch(model.source)["host"] in downloading.HOSTS, model.name


def test_inside_comfyui_files_go_where_its_nodes_read_them(monkeypatch, tmp_path):
    monkeypatch.delenv("VC_MODELS", raising=False)
    places = {model.name: place_of(model) for model in MODELS}
    assert set(places.values()) == {published.PROJECT / "models"}
    monkeypatch.setattr(published, "PROJECT", tmp_path / "custom_nodes" / "pack")
    places = {model.name: place_of(model) for model in MODELS}
    assert places["non_ema_228000.pth"] == places["table5_pidinet.pth"] == tmp_path / "models" / "videocomposer"
    assert places["vae-ft-mse-840000-ema-pruned.safetensors"] == tmp_path / "models" / "vae"
    assert set(places.values()) < set(model_folders())


def test_nothing_else_opens_connections(repository):
    """By what the project's rooms import, anywhere in their files."""
    network = {"requests", "urllib3", "urllib.request", "http.client", "httpx", "aiohttp", "ftplib", "huggingface_hub"}
    found = set()
    for room in ("vc_core", "nodes", "training"):
        for file in (repository / room).rglob("*.py"):
            names = set(imported(file))
            if names & network or any(name.endswith("downloading") for name in names):
                found.add(file.relative_to(repository).as_posix())
    assert found == {"vc_core/downloading.py", "vc_core/commands/get.py"}
