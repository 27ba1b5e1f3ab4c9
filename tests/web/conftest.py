"""ComfyUI's page in a headless browser."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.host.server import Host

HERE = Path(__file__).parent
PACK_FOLDER = "ComfyUI-VideoComposer"
"""ComfyUI serves the scripts, templates and help pages of no pack whose folder has a space in its name."""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS = 300

# What the page complains about without any pack too: files that a fresh user folder lacks, and its own settings.
_STOCK = ("status of 404", "reading 'id'")


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
        complaints: errors and warnings of the page that have to do with this pack, or that no stock page has.
    """

    result: Any
    complaints: list[str]


@dataclass
class Browser:
    """Plays scenarios on the page of a running ComfyUI; pictures of it are kept in the folder `pictures`, if any."""

    host: Any
    pictures: str
    environment: dict[str, str]

    def play(self, scenario: str, **given: Any) -> Seen:
        """Plays a scenario of this folder with what it is given; see `browser.js`."""
        run = subprocess.run(
            ["node", HERE / "browser.js", HERE / scenario, self.host.url, self.pictures, json.dumps(given)],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env={**os.environ, **self.environment},
        )
        assert run.returncode == 0, run.stderr[-3000:]
        seen = json.loads(run.stdout.splitlines()[-1])
        return Seen(seen["result"], [text for text in map(_ours, seen["complaints"]) if text])


def _ours(complaint: dict[str, str]) -> str:
    """The complaint as a text where it may be ours, else an empty one."""
    text = f"{complaint['text']} {complaint['where']}"
    if ("/extensions/" in text and "/extensions/core/" not in text) or "videocomposer" in text.lower():
        return text
    stock = complaint["kind"] == "warning" or any(known in text for known in _STOCK)
    return "" if stock else text


@pytest.fixture(scope="session")
def browser(comfyui, tmp_path_factory):
    """A browser on the page of a ComfyUI with this pack. It takes pictures, to look at, where VC_PICTURES is a folder.

    No test needs them, and on a busy machine without a GPU one may take half a minute.
    """
    try:
        environment = find_browser()
    except NoBrowser as reason:
        pytest.skip(str(reason))
    host = Host.start(tmp_path_factory.mktemp("comfyui"), PACK_FOLDER, comfyui)
    pictures = os.environ.get("VC_PICTURES", "")
    if pictures:
        Path(pictures).mkdir(parents=True, exist_ok=True)
    yield Browser(host, pictures, environment)
    host.stop()
