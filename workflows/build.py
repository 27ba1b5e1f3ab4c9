"""Builds this folder's templates and their thumbnails, with a running ComfyUI that has the pack:

    python workflows/build.py http://127.0.0.1:8188 --later http://127.0.0.1:8189 [--pictures] [NAME ...]

The first URL is the oldest supported ComfyUI: the files contain its widgets, and it renders the thumbnails. The other
is the newest ComfyUI, for the sizes of its nodes and for nodes that only it has.

ComfyUI lists the folder's *.json as the pack's templates, by file name, so the names begin with a number in order of
use. `templates.py` lists them, `graphs.py` has their graphs, `layout.py` turns a graph into a file. A released template
must always stay loadable: tests/host/test_templates.py freezes it.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from graphs import GROUPS
from layout import Graph, prompt, workflow
from templates import TEMPLATES

FOLDER = Path(__file__).parent


def run(url: str, graph: dict[str, Any]) -> dict[str, Any]:
    """Run a graph in API format, and return the outputs of its nodes: node id -> output."""
    data, headers = json.dumps({"prompt": graph}).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/prompt", data, headers)) as answer:
        number = json.load(answer)["prompt_id"]
    while number not in (history := fetch_json(f"{url}/history/{number}")):
        time.sleep(0.3)
    if history[number]["status"]["status_str"] != "success":
        raise SystemExit(f"The template failed: {json.dumps(history[number]['status']['messages'][-1], indent=1)}")
    return history[number]["outputs"]


def fetch_json(address: str) -> Any:
    with urllib.request.urlopen(address) as answer:
        return json.load(answer)


def saved_frames(url: str, files: list[dict[str, str]]) -> list[Any]:
    """Return the frames that a node saved, as images or a video, as PIL images."""
    import av
    from PIL import Image, ImageSequence

    frames = []
    for file in files:
        with urllib.request.urlopen(f"{url}/view?{urlencode(file)}") as answer:
            content = io.BytesIO(answer.read())
        if file["filename"].endswith(".mp4"):
            with av.open(content) as container:
                frames += [frame.to_image() for frame in container.decode(video=0)]
        else:
            frames += [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(content))]
    return frames


def evenly(frames: list[Any], count: int, skip: int = 0) -> list[Any]:
    """Return `count` frames at even distances; the last frame is included, the first `skip` positions are left out."""
    return [frames[round(i * (len(frames) - 1) / (skip + count - 1))] for i in range(skip, skip + count)]


def thumbnail(url: str, graph: Graph, columns: int = 3, side: int = 128) -> Any:
    """Run a template and return its thumbnail: a row of its nodes' previews, if any, then frames of the video."""
    from PIL import Image

    outputs = run(url, prompt(graph))
    *previews, video = (saved_frames(url, outputs[node]["images"]) for node in sorted(outputs, key=int))
    cells = [preview[0] for preview in previews[:-1]]
    if previews:
        cells += evenly(previews[-1], columns - len(cells), skip=1)  # the first frame of a motion is empty
    cells += evenly(video, columns * columns - len(cells))
    sheet = Image.new("RGB", (columns * side, columns * side))
    for i, cell in enumerate(cells):
        sheet.paste(cell.resize((side, side), Image.Resampling.LANCZOS), (i % columns * side, i // columns * side))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="a running ComfyUI of the oldest version, such as http://127.0.0.1:8188")
    parser.add_argument("--later", metavar="URL", required=True, help="a running ComfyUI of the newest version")
    parser.add_argument("names", nargs="*", metavar="NAME", help="templates; by default all")
    parser.add_argument("--pictures", action="store_true", help="also run the templates and render their thumbnails")
    arguments = parser.parse_intermixed_args()
    nodes, later = (fetch_json(f"{url}/object_info") for url in (arguments.url, arguments.later))
    for name in arguments.names or TEMPLATES:
        template = TEMPLATES[name]
        graph, thumbnail_graph = Graph(nodes, GROUPS, later), Graph(nodes, GROUPS, later)
        template.build(graph)
        (template.build_thumbnail or template.build)(thumbnail_graph)
        content = workflow(graph, name, template.note(name))
        (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        if arguments.pictures:
            thumbnail(arguments.url, thumbnail_graph).save(FOLDER / f"{name}.jpg", quality=80)
        print(name, flush=True)


if __name__ == "__main__":
    main()
