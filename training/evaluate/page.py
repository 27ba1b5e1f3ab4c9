"""Writes the report as one HTML file that can be sent to others. The videos are inside the file, and it uses neither
scripts nor other files. The template is `page.html.j2`."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from torch import Tensor

from training.evaluate.evaluation import EvaluationSettings, Result
from training.evaluate.examples import Examples
from training.evaluate.report import (
    as_mapping,
    condition_image,
    figure_text,
    in_words,
    intro,
    notes_on,
    table_cells,
    vbench_cells,
)
from training.evaluate.summary import FEWEST, verdicts
from training.evaluate.trials import ARMS, TOGETHER, TRIALS, arms_of
from vc_core.video import resize_crop
from vc_core.video.formats import as_bytes

PAGE = "report.html"
MOST = 20_000_000
"""Maximum size of all videos in bytes, as text in the page."""
ATTEMPTS = ((6, 256), (6, 192), (6, 128), (4, 128), (4, 96), (2, 96), (2, 64), (1, 64), (0, 64))
"""Clips per condition, and height of their videos in pixels. The first that fits into `MOST` is used."""
QUALITY = 75  # of WebP, in percent
RATE = 8  # frames per second if a checkpoint's is unknown

Encode = Callable[[Tensor, int], str]


def write_page(path: Path, settings: EvaluationSettings, results: Sequence[Result], most: int = MOST) -> None:
    """Write the page. `most` limits the size of its videos in bytes."""
    path.write_text(as_page(settings, results, most), encoding="utf-8")


def as_page(settings: EvaluationSettings, results: Sequence[Result], most: int = MOST) -> str:
    """Return the page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"emphasis": emphasis, "intervals": intervals}
    plain = as_mapping(settings, results)
    height, sections = fitting_sections(settings, results, most)
    head, *rows = table_cells(settings, results)
    return environment.get_template("page.html.j2").render(
        names=[result.name for result in results],
        intro=[line for line in intro(settings, results) if line and not line.startswith("- ")],
        verdicts=[line.removeprefix("- ") for line in in_words(results)],
        notes=[line.removeprefix("- ") for line in notes_on(settings, results)],
        head=head,
        rows=rows,
        scores=vbench_cells(results),
        differences=list(differences(results)),
        several=len(results) > 1,
        fewest=FEWEST,
        sections=sections,
        height=height,
        settings=list(flat(plain["settings"] | {"SHA-256 of": plain["files"], "version of": plain["versions"]})),
        checkpoints=[(result.name, list(flat(result.about))) for result in results],
        clips=clip_rows(results[0]),
    )


def emphasis(text: str) -> Markup:
    """Escape a text, and turn `*words*` into emphasis as in Markdown."""
    return Markup(re.sub(r"\*([^*<>]+)\*", r"<em>\1</em>", str(escape(text))))


def intervals(text: str) -> Markup:
    """Escape a text, mark `[low, high]` in it, and let long names of files break after `_`."""
    breakable = str(escape(text)).replace("_", "_<wbr>")
    return Markup(re.sub(r"\[[^][]*\]", r'<span class="interval">\g<0></span>', breakable))


def flat(mapping: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the names and values of nested settings as texts, without those that are not set. Absolute paths are shown
    without their folders, because the page is sent to others."""
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key} ")
        elif value not in (None, (), [], ""):
            values = value if isinstance(value, (list, tuple)) else [value]
            yield f"{prefix}{_name(key)}", ", ".join(map(_name, map(str, values)))


def _name(text: str) -> str:
    return Path(text).name if os.path.isabs(text) else text


def clip_names(clips: Examples) -> list[str]:
    """Return the names of clips in their folder, or of the videos that shards were prepared from; of synthetic scenes,
    which have no files, their numbers."""
    return [source.get("source", source["file"]) for source in clips.sources] or clips.keys


def clip_rows(result: Result) -> list[list[str]]:
    """Return a head, and name, text and hash of each clip; synthetic scenes have no files and no hashes."""
    clips = result.clips
    columns = {"clip": clip_names(clips), "text": clips.texts}
    if any("sha256" in source for source in clips.sources):
        columns["SHA-256"] = [source["sha256"] for source in clips.sources]
    return [[*columns], *map(list, zip(*columns.values(), strict=True))]


def differences(results: Sequence[Result]) -> Iterator[list[str]]:
    """Yield the paired differences of each measure and checkpoint as texts, and the verdict compared with the first."""
    words = [
        {name: word for word, names in verdicts(result, results[0]).items() for name in names} for result in results
    ]
    for name in dict.fromkeys(name for result in results for name in result.rows):
        for result, word in zip(results, words, strict=True):
            if (row := result.rows.get(name)) is not None:
                gains = [figure_text(row, row.gains[arm], "+") for arm in ARMS[1:]]
                over_first = figure_text(row, result.over_first.get(name), "+")
                condition = row.measure.trial.replace("_", " ")
                yield [condition, row.measure.label, result.name, *gains, over_first, word.get(name, "")]


# --- Videos ---------------------------------------------------------------------------------------------------------


def fitting_sections(
    settings: EvaluationSettings, results: Sequence[Result], most: int
) -> tuple[int, list[dict[str, Any]]]:
    """Return the height of the videos in pixels, and the sections, with as many and as large videos as `most` bytes
    allow. All videos have the same height, so that checkpoints can be compared."""
    for count, height in ATTEMPTS:
        sections, size = [], 0
        for section in video_sections(settings, results, count, height):
            sections.append(section)
            size += sum(len(image) for row in section["rows"] for _, image in row["images"])
            if size > most:
                break
        else:
            return height, sections
    raise AssertionError("the last attempt has no videos, so it always fits")


def video_sections(
    settings: EvaluationSettings, results: Sequence[Result], count: int, height: int
) -> Iterator[dict[str, Any]]:
    """Yield a section for each tested condition: for each of the first clips a row with the source, the condition, and
    the videos of each checkpoint by arm, with the first seed."""
    if count == 0:
        return
    first, seeds = results[0], settings.sampling.seeds
    rate = next((source["rate"] for source in first.clips.sources if "rate" in source), RATE)

    @cache
    def shown(owner: int, wiring: Any, clip: int) -> str:
        return encoded(results[owner].videos[wiring][clip * seeds].float() / 255, height, rate)

    trials = dict.fromkeys(row.measure.trial for result in results for row in result.rows.values())
    if any(result.together is not None for result in results):
        trials[TOGETHER] = None
    for trial in trials:
        condition = None if trial in ("text", TOGETHER) else TRIALS[trial].condition
        groups = []
        for owner, result in enumerate(results):
            wirings = {"given": result.together} if trial == TOGETHER else arms_of(trial)
            arms = {arm: wiring for arm, wiring in wirings.items() if wiring in result.videos}
            groups += [{"name": result.name, "owner": owner, "arms": arms}] if arms else []
        rows = []
        for number in range(min(count, len(first.clips))):
            key = first.clips.keys[number]
            images = [("source", encoded(first.clips.truth.video[number], height, rate))]
            if condition:
                images.append((condition, encoded(condition_image(first, condition, number), height, rate)))
            for group in groups:
                keys = results[group["owner"]].clips.keys  # a checkpoint with longer clips may have skipped some
                for arm, wiring in group["arms"].items():
                    image = shown(group["owner"], wiring, keys.index(key)) if key in keys else ""
                    images.append((f"{group['name']}, {trial} {arm}", image))
            rows.append({"clip": clip_names(first.clips)[number], "text": first.clips.texts[number], "images": images})
        inputs = ["source", *([f"{condition.replace('_', ' ')}, given"] if condition else [])]
        yield {"title": trial.replace("_", " "), "inputs": inputs, "groups": groups, "rows": rows}


def encoded(video: Tensor, height: int, rate: float) -> str:
    """Return a video (3 or 1, F, H, W) in [0, 1] as a looping WebP of this height at most, as a data URI."""
    from PIL import Image

    if video.shape[-2] > height:
        width = round(video.shape[-1] * height / video.shape[-2])
        video = resize_crop(video[None], (height, width))[0]
    first, *others = map(Image.fromarray, as_bytes(video))
    file = BytesIO()
    first.save(
        file,
        format="WEBP",
        save_all=bool(others),
        append_images=others,
        duration=round(1000 / rate),
        loop=0,
        quality=QUALITY,
        method=2,
    )
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
