"""ComfyUI's page in a headless browser."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.host.server import Host

HERE = Path(__file__).parent
PACK_FOLDER = "ComfyUI-VideoComposer"
"""ComfyUI serves the scripts, templates and help pages of no pack whose folder has a space in its name."""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS = 300


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


@pytest.fixture(scope="session")
def browser(comfyui, tmp_path_factory):
    """A browser on the page of a ComfyUI with this pack. It takes pictures, to look at, where VC_PICTURES is a folder.

    No test needs them, and on a busy machine without a GPU one may take half a minute.
    """
    try:
        environment = find_browser()
    except NoBrowser as reason:
        pytest.skip(str(reason))

    def start(pack: str | None) -> Host:
        return Host.start(tmp_path_factory.mktemp("comfyui"), pack, comfyui)

    pictures = os.environ.get("VC_PICTURES", "")
    if pictures:
        Path(pictures).mkdir(parents=True, exist_ok=True)
    host = start(PACK_FOLDER)
    yield Browser(host, pictures, environment, partial(start, None))
    host.stop()
