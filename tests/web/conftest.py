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
"""ComfyUI does not serve the scripts, templates and help pages of a pack with a space in its folder's name."""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS = 300

_HTML_NODES = (0, 33)
"""The first ComfyUI with HTML nodes ("Nodes 2.0") in the sizes of a workflow; it also works with later front ends."""


class NoBrowser(Exception):
    """There is no browser to test with; the message says how to install one."""


def find_browser() -> dict[str, str]:
    """Return the paths of playwright-core and Chromium, as environment variables for `browser.js`.

    Raises:
        NoBrowser: Node.js, playwright-core or Chromium is missing.
    """
    if shutil.which("node") is None:
        raise NoBrowser("Node.js, which controls the browser, is not installed: install it, or run without tests/web")
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
class Report:
    """The outcome of a scenario.

    Attributes:
        result: its return value.
        complaints: errors and warnings of the page that concern this pack, and errors that a page without it does not
            have.
    """

    result: Any
    complaints: list[str]


class Complaint(NamedTuple):
    """A message in the page's console, and the address of its script; both without the server's address."""

    kind: str
    text: str
    where: str

    def __str__(self) -> str:
        return f"{self.text} {self.where}"

    @property
    def ours(self) -> bool:
        """Whether it concerns this pack."""
        text = str(self)
        return ("/extensions/" in text and "/extensions/core/" not in text) or "videocomposer" in text.lower()


@dataclass
class Browser:
    """Plays scenarios on the page of a running ComfyUI; screenshots are saved in the folder `pictures`, if any.

    Attributes:
        without: starts the same ComfyUI without this pack.
        stock: the errors that the page was observed to have there.
    """

    host: Host
    pictures: str
    environment: dict[str, str]
    without: Callable[[], Host]
    stock: set[Complaint] = field(default_factory=set)

    def play(self, scenario: str, **options: Any) -> Report:
        """Play a scenario of this folder with its options; see `browser.js`."""
        result, complaints = self._play(self.host, scenario, options)
        errors = [complaint for complaint in complaints if complaint.kind == "error" and not complaint.ours]
        if not self.stock.issuperset(errors):
            host = self.without()
            try:
                self.stock.update(self._play(host, "stock.js", {"settings": options.get("settings", {})})[1])
            finally:
                host.stop()
        new = [complaint for complaint in errors if complaint not in self.stock]
        return Report(result, [str(complaint) for complaint in complaints if complaint.ours or complaint in new])

    def _play(self, host: Host, scenario: str, options: dict[str, Any]) -> tuple[Any, list[Complaint]]:
        run = subprocess.run(
            ["node", HERE / "browser.js", HERE / scenario, host.url, self.pictures, json.dumps(options)],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env={**os.environ, **self.environment},
        )
        assert run.returncode == 0, run.stderr[-3000:]
        report = json.loads(run.stdout.splitlines()[-1])
        complaints = [{key: text.replace(host.url, "") for key, text in item.items()} for item in report["complaints"]]
        return report.get("result"), [Complaint(**item) for item in complaints]


def find_front_ends() -> list[Path]:
    """Return front ends to test in addition to those that the ComfyUIs were installed with, as folders of static files.

    They are those in COMFYUI_FRONT_END, separated as in PATH; else those that pip has installed into folders `front*`
    in the home folder (`pip install --target ~/frontend-1.58.1 comfyui-frontend-package==1.58.1`).
    """
    named = [Path(part) for part in os.environ.get("COMFYUI_FRONT_END", "").split(os.pathsep) if part]
    return named or sorted(Path.home().glob("front*/comfyui_frontend_package/static"))


def pytest_generate_tests(metafunc):
    """Run the page's tests with ComfyUI's own front end, and with `--hosts all` also with every other front end."""
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
        pytest.skip("other front ends require a later ComfyUI")
    return request.param


@pytest.fixture(params=["LiteGraph", "Nodes 2.0"])
def renderer(request, browser, comfyui):
    """The page's settings for each of its renderers: nodes on a canvas, and HTML nodes."""
    html = request.param == "Nodes 2.0"
    if html and not _is_new(comfyui):
        pytest.skip("this ComfyUI's HTML nodes ignore the sizes of a workflow")
    yield {"Comfy.VueNodes.Enabled": html, "Comfy.RightSidePanel.IsOpen": False}
    browser.host.post("/settings", {"Comfy.VueNodes.Enabled": False})  # ComfyUI stores this setting


@pytest.fixture(scope="session")
def browser(comfyui, front_end, tmp_path_factory):
    """A browser on the page of a ComfyUI with this pack. It saves screenshots if VC_PICTURES is a folder.

    No test needs them, and on a busy machine without a GPU a screenshot may take half a minute.
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
