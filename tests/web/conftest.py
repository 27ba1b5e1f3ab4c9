"""ComfyUI's page in a headless browser."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.host.finding import ComfyUI
from tests.host.server import Host

HERE = Path(__file__).parent
PACK_FOLDER = "ComfyUI-VideoComposer"
"""ComfyUI serves the scripts, templates and help pages of no pack whose folder has a space in its name."""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS = 300

_HTML_NODES = (0, 33)
"""The ComfyUI whose page has nodes of HTML ("Nodes 2.0") in the sizes of a workflow, and takes later front ends."""


class NoBrowser(Exception):
    """There is no browser to test with; the message says how to give one."""


def find_browser() -> dict[str, str]:
    """Where Node.js, playwright-core and a Chromium are, as the environment that `browser.js` wants.

    Raises:
        NoBrowser: one of them is missing.
    """
    if shutil.which("node") is None:
        raise NoBrowser("no Node.js found, which drives the browser: install it, or run without tests/web")
    homes = (HERE.parents[1], Path.home(), *sorted(path for path in Path.home().iterdir() if os.path.isdir(path)))
    places = (folder / "node_modules" / "playwright-core" for folder in homes)
    playwright = os.environ.get("PLAYWRIGHT_PATH") or next((str(place) for place in places if place.is_dir()), None)
    if playwright is None:
        raise NoBrowser("no playwright-core found: npm install playwright-core, and set PLAYWRIGHT_PATH to its folder")
    chromium = os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, _BROWSERS)), None)
    if chromium is None:
        raise NoBrowser("no Chromium found: install one, or set CHROMIUM_PATH to its executable")
    return {"PLAYWRIGHT_PATH": playwright, "CHROMIUM_PATH": chromium}


@dataclass
class Seen:
    """What came of a scenario.

    Attributes:
        result: what it returned.
        complaints: errors and warnings of the page that have to do with this pack, and errors that a page without it
            has not.
    """

    result: Any
    complaints: list[str]


class Complaint(NamedTuple):
    """What the console of the page says, and the address of the script; both without the server's address."""

    kind: str
    text: str
    where: str

    def __str__(self) -> str:
        return f"{self.text} {self.where}"

    @property
    def ours(self) -> bool:
        """Whether it has to do with this pack."""
        text = str(self)
        return ("/extensions/" in text and "/extensions/core/" not in text) or "videocomposer" in text.lower()


@dataclass
class Browser:
    """Plays scenarios on the page of a running ComfyUI; pictures of it are kept in the folder `pictures`, if any.

    Attributes:
        without: starts the same ComfyUI without this pack.
        stock: what errors the page has there, as far as they were looked for.
    """

    host: Host
    pictures: str
    environment: dict[str, str]
    without: Callable[[], Host]
    stock: set[Complaint] = field(default_factory=set)

    def play(self, scenario: str, **given: Any) -> Seen:
        """Plays a scenario of this folder with what it is given; see `browser.js`."""
        result, complaints = self._play(self.host, scenario, given)
        errors = [one for one in complaints if one.kind == "error" and not one.ours]
        if not self.stock.issuperset(errors):
            host = self.without()
            try:
                self.stock.update(self._play(host, "stock.js", {"settings": given.get("settings", {})})[1])
            finally:
                host.stop()
        return Seen(result, [str(one) for one in complaints if one.ours or (one in errors and one not in self.stock)])

    def _play(self, host: Host, scenario: str, given: dict[str, Any]) -> tuple[Any, list[Complaint]]:
        run = subprocess.run(
            ["node", HERE / "browser.js", HERE / scenario, host.url, self.pictures, json.dumps(given)],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env={**os.environ, **self.environment},
        )
        assert run.returncode == 0, run.stderr[-3000:]
        seen = json.loads(run.stdout.splitlines()[-1])
        complaints = [{key: text.replace(host.url, "") for key, text in one.items()} for one in seen["complaints"]]
        return seen.get("result"), [Complaint(**one) for one in complaints]


def find_front_ends() -> list[Path]:
    """Front ends to test on beside those that the ComfyUIs were installed with, as folders of static files.

    They are those that COMFYUI_FRONT_END names, several separated as in PATH; else those that pip has installed into
    folders `front*` in the home folder (`pip install --target ~/frontend-1.58.1 comfyui-frontend-package==1.58.1`).
    """
    named = [Path(part) for part in os.environ.get("COMFYUI_FRONT_END", "").split(os.pathsep) if part]
    return named or sorted(Path.home().glob("front*/comfyui_frontend_package/static"))


def pytest_generate_tests(metafunc):
    """Tests of the page are there once for the ComfyUI's own front end, and with `--hosts all` for each other one."""
    if "front_end" in metafunc.fixturenames:
        others = find_front_ends() if metafunc.config.option.hosts == "all" or "COMFYUI_FRONT_END" in os.environ else []
        names = ["own", *(folder.absolute().parents[1].name for folder in others)]
        metafunc.parametrize("front_end", [None, *others], indirect=True, scope="session", ids=names)


def _is_new(comfyui: ComfyUI) -> bool:
    return tuple(map(int, re.findall(r"\d+", comfyui.version))) >= _HTML_NODES


@pytest.fixture(scope="session")
def front_end(request, comfyui):
    """The static files of the page, or None for the ComfyUI's own."""
    if request.param is not None and not _is_new(comfyui):
        pytest.skip("other front ends than their own are for later ComfyUIs")
    return request.param


@pytest.fixture(params=["LiteGraph", "Nodes 2.0"])
def renderer(request, browser, comfyui):
    """The page's settings for each of its renderers: nodes on a canvas, and of HTML."""
    html = request.param == "Nodes 2.0"
    if html and not _is_new(comfyui):
        pytest.skip("this ComfyUI's nodes of HTML have sizes of their own")
    yield {"Comfy.VueNodes.Enabled": html, "Comfy.RightSidePanel.IsOpen": False}
    browser.host.post("/settings", {"Comfy.VueNodes.Enabled": False})  # which ComfyUI keeps


@pytest.fixture(scope="session")
def browser(comfyui, front_end, tmp_path_factory):
    """A browser on the page of a ComfyUI with this pack. It takes pictures, to look at, where VC_PICTURES is a folder.

    No test needs them, and on a busy machine without a GPU one may take half a minute.
    """
    try:
        environment = find_browser()
    except NoBrowser as reason:
        pytest.skip(str(reason))

    def start(pack: str | None) -> Host:
        return Host.start(tmp_path_factory.mktemp("comfyui"), pack, comfyui, front_end=front_end)

    pictures = os.environ.get("VC_PICTURES", "")
    if pictures:
        Path(pictures).mkdir(parents=True, exist_ok=True)
    host = start(PACK_FOLDER)
    yield Browser(host, pictures, environment, partial(start, None))
    host.stop()
