"""A real ComfyUI that runs with this checkout as a pack."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.host.finding import ComfyUI, find_comfyuis
from tests.host.graph import Graph
from tests.host.websocket import WebSocket

REPOSITORY = Path(__file__).resolve().parents[2]

PACK_FOLDER = "ComfyUI-VideoComposer v0.1 (copy)"
"""The folder of the pack. Users may choose any name, so it has a space, a dot, a dash and brackets."""

INTERRUPTER = Path(__file__).with_name("interrupter.py")

_START_SECONDS, _RUN_SECONDS, _STOP_SECONDS = 180, 300, 20


def environment() -> dict[str, str]:
    """Return the variables for a ComfyUI's Python, without those of ./vc, which would hide ComfyUI's modules."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONHOME")}


@dataclass
class Result:
    """One run of a graph.

    Attributes:
        outputs: node id -> what the node shows, by ComfyUI's keys ("images", "latents", "video", "text").
        events: all websocket messages about the run as (type, data), in their order. Binary messages are
            ("binary", bytes), texts on a node are ("text", (node id, text)).
        error: the message "execution_error" of a failed run, with "node_type", "exception_type" and
            "exception_message". None if the run succeeded or was interrupted.
        interrupted: whether the run was interrupted.
        seconds: duration of the run.
    """

    outputs: dict[str, dict[str, Any]]
    events: list[tuple[str, Any]]
    error: dict[str, Any] | None
    interrupted: bool
    seconds: float
    _folder: Path

    @property
    def executed(self) -> set[str]:
        """Ids of the nodes that ran."""
        return {data["node"] for kind, data in self.events if kind == "executing" and data["node"] is not None}

    @property
    def cached(self) -> set[str]:
        """Ids of the nodes that did not have to run."""
        return {node for kind, data in self.events if kind == "execution_cached" for node in data["nodes"]}

    @property
    def notes(self) -> list[str]:
        """The notes that the nodes showed."""
        return [text for kind, data in self.events if kind == "text" for text in data[1].split("\n")]

    @property
    def files(self) -> list[Path]:
        """Every file that the run saved or found in the cache, without the temporary ones that nodes show."""
        return [file for node in self.outputs for file in self.files_of(node) if file.parent.name != "temp"]

    def files_of(self, node: str) -> list[Path]:
        """Return the files that a node saved."""
        entries = [entry for listed in self.outputs[node].values() for entry in listed if isinstance(entry, dict)]
        return [self._folder / e["type"] / e["subfolder"] / e["filename"] for e in entries if "filename" in e]


class RunFailed(AssertionError):
    """A graph failed that should have run."""


@dataclass
class Host:
    """A running ComfyUI.

    Attributes:
        url: for example `http://127.0.0.1:8188`.
        folder: its base directory, with `input`, `output`, `models` and `user`.
        start_log: its log until it was ready.
    """

    url: str
    folder: Path
    process: subprocess.Popen = field(repr=False)
    _log: Path = field(repr=False)
    start_log: str = field(default="", repr=False)

    @staticmethod
    def start(
        folder: Path,
        pack: str | None = PACK_FOLDER,
        comfyui: ComfyUI | None = None,
        source: Path = REPOSITORY,
        front_end: Path | None = None,
    ) -> "Host":
        """Start a ComfyUI on the CPU with an empty base directory.

        Args:
            folder: the base directory to create.
            pack: name of this pack's folder; None leaves the pack out.
            comfyui: the ComfyUI to start; by default the first of `find_comfyuis`.
            source: the folder of this pack.
            front_end: the page's static files; by default the installed ones.
        """
        comfyui = comfyui or find_comfyuis()[0]
        for name in ("custom_nodes", "input", "output", "user", "models/videocomposer", "models/loras"):
            (folder / name).mkdir(parents=True)
        if pack is not None:
            (folder / "custom_nodes" / pack).symlink_to(source, target_is_directory=True)
            (folder / "custom_nodes" / INTERRUPTER.name).symlink_to(INTERRUPTER)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = {
            "--listen": "127.0.0.1",
            "--port": port,
            "--base-directory": folder,
            "--database-url": f"sqlite:///{folder / 'user' / 'comfyui.db'}",
            "--preview-method": "latent2rgb",
            **({} if front_end is None else {"--front-end-root": front_end}),
        }
        switches = ["--cpu", "--disable-api-nodes", "--disable-auto-launch"]
        log = folder / "host.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [comfyui.python, "main.py", *switches, *(str(part) for option in options.items() for part in option)],
                cwd=comfyui.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        host = Host(f"http://127.0.0.1:{port}", folder, process, log)
        try:
            host._wait_until_up()
        except BaseException:
            host.stop()
            raise
        return host

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                self.get("/system_stats")
                self.start_log = self.log()
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"ComfyUI did not start. Its log ends with:\n{self.log()[-3000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        """Return its log so far."""
        return self._log.read_text(errors="replace")

    # --- Its HTTP interface -----------------------------------------------------------------------------------------

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return json.load(response)

    def post(self, path: str, content: Any) -> Any:
        """Post JSON and return the answer, also for status 400, which describes errors in a graph."""
        data, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=30) as response:
                body = response.read()
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            body = error.read()
        return json.loads(body) if body else None

    def object_info(self) -> dict[str, Any]:
        """Return node id -> ComfyUI's description, for all nodes."""
        return self.get("/object_info")

    @property
    def checkpoints(self) -> Path:
        """Its model folder `videocomposer`."""
        return self.folder / "models" / "videocomposer"

    @cached_property
    def nodes(self) -> dict[str, Any]:
        return self.object_info()

    def graph(self) -> Graph:
        """Return an empty graph, whose nodes get the defaults of their widgets."""
        return Graph(self.nodes)

    def pack_nodes(self) -> dict[str, Any]:
        """Return the entries of `object_info` for this pack's nodes."""
        module = f"custom_nodes.{INTERRUPTER.stem}"
        nodes = {k: v for k, v in self.object_info().items() if v["python_module"].startswith("custom_nodes")}
        return {k: v for k, v in nodes.items() if v["python_module"] != module}

    def unload_models(self) -> None:
        """Unload all models from memory. Computed results stay in the cache."""
        self.post("/free", {"unload_models": True})
        time.sleep(0.5)  # the request wakes up the worker, which unloads them

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def run(self, graph: dict[str, Any], on_event: Any = None) -> Result:
        """Run a graph in API format to its end.

        Args:
            on_event: called as `on_event(type, data)` for each websocket message.

        Raises:
            RunFailed: ComfyUI refused the graph, or a node failed.
        """
        result = self._run(graph, on_event)
        if result.error is not None:
            error = result.error
            raise RunFailed(
                f"{error['node_type']} ({error['node_id']}): {error['exception_type']}: {error['exception_message']}\n"
                + "".join(error["traceback"])
            )
        return result

    def fails(self, graph: dict[str, Any]) -> dict[str, Any]:
        """Run a graph that must fail, and return its error, see `Result.error`."""
        error = self._run(graph).error
        if error is None:
            raise RunFailed("The graph should have failed, but it ran.")
        return error

    def _run(self, graph: dict[str, Any], on_event: Any = None) -> Result:
        client, started = uuid.uuid4().hex, time.monotonic()
        with WebSocket(f"{self.url}/ws?clientId={client}", _RUN_SECONDS) as messages:
            answer = self.post("/prompt", {"prompt": graph, "client_id": client})
            if "prompt_id" not in answer:
                raise RunFailed(f"ComfyUI refused the graph: {json.dumps(answer, indent=1)}")
            prompt, events = answer["prompt_id"], []
            for message in messages:
                kind, data = _parsed(message)
                if isinstance(data, dict) and data.get("prompt_id", prompt) != prompt:
                    continue
                events.append((kind, data))
                if on_event is not None:
                    on_event(kind, data)
                if kind == "executing" and data["node"] is None:
                    break
        last = {kind: data for kind, data in events}
        history = self.get(f"/history/{prompt}")[prompt]
        return Result(
            history["outputs"],
            events,
            last.get("execution_error"),
            "execution_interrupted" in last,
            time.monotonic() - started,
            self.folder,
        )


_TEXT = 3  # ComfyUI's number for a text on a node among its binary messages


def _parsed(message: str | bytes) -> tuple[str, Any]:
    if isinstance(message, str):
        content = json.loads(message)
        return content["type"], content.get("data")
    if int.from_bytes(message[:4], "big") != _TEXT:
        return "binary", message
    end = 8 + int.from_bytes(message[4:8], "big")
    return "text", (message[8:end].decode(), message[end:].decode())


if __name__ == "__main__":  # to look at the pages: python -m tests.host.server FOLDER
    running = Host.start(Path(sys.argv[1]))
    print(running.url, flush=True)
    try:
        running.process.wait()
    finally:
        running.stop()
