"""The HTML report of `./vc evaluate`: complete, readable without a network, escaped, and not too large."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import pytest
import torch
from PIL import Image

from training.evaluate.evaluation import EvaluationSettings, evaluate
from training.evaluate.page import as_page, emphasis, encoded, fitting_sections, intervals
from training.evaluate.report import table_cells
from training.evaluate.trials import ARMS, Composing, arms_of

HOSTILE = 'a <script>alert(1)</script> & "quotes" \x7f'


@pytest.fixture(scope="module")
def settings(tiny_checkpoint):
    sampling = Composing(seeds=1, steps=1)
    return EvaluationSettings(
        (tiny_checkpoint, tiny_checkpoint),
        clips=2,
        sampling=sampling,
        only=("sketch", "together"),
        device="cpu",
        jobs=1,
    )


@pytest.fixture(scope="module")
def results(settings):
    return evaluate(settings)


class Elements(HTMLParser):
    """Collects the elements of a page, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def images_of(page):
    uris = [attributes["src"] for tag, attributes in Elements(page).elements if tag == "img"]
    return [Image.open(BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,")))) for uri in uris]


def test_the_page_contains_every_figure_and_every_video(settings, results):
    page = as_page(settings, results)
    parsed = Elements(page)
    assert parsed.open == []  # every element is closed
    text = "".join(parsed.texts)
    for cell in {cell for row in table_cells(settings, results) for cell in row}:
        assert cell in text
    for result in results:
        assert result.about["sha256"] in text and result.name in text
    # Per clip and trial: the source and the condition, then the arms of both checkpoints.
    trials = {"sketch": 2 + 2 * len(ARMS), "together": 1 + 2}
    images = images_of(page)
    assert len(images) == 2 * sum(trials.values())
    frames = results[0].clips.truth.video.shape[2]
    counts = [getattr(image, "n_frames", 1) for image in images]  # frames without any change are stored as one
    assert max(counts) == frames and counts[0] == counts[len(images) - 3] == frames


def test_videos_are_those_of_their_arm_and_clip(settings, results):
    arms = list(arms_of("sketch").values())
    videos = results[0].videos.copy()  # grey ones, because the tiny network's videos are all black
    for level, wiring in enumerate(arms):
        videos[wiring] = torch.zeros_like(videos[wiring]) + 40 * level + torch.tensor([0, 120]).view(2, 1, 1, 1, 1)
        videos[wiring] = videos[wiring].to(torch.uint8)
    _, sections = fitting_sections(settings, [replace(results[0], videos=videos), results[1]], 10**9)
    (sketch,) = (section for section in sections if section["title"] == "sketch")
    for number, row in enumerate(sketch["rows"]):
        images = dict(row["images"])
        for arm, wiring in arms_of("sketch").items():
            label = f"{results[0].name}, sketch {arm}"
            image = Image.open(BytesIO(base64.b64decode(images[label].partition(",")[2]))).convert("RGB")
            mean = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float().mean().item()
            assert mean == pytest.approx(40 * arms.index(wiring) + 120 * number, abs=4)


def test_the_page_needs_no_other_file_and_no_script(settings, results):
    page = as_page(settings, results)
    for tag, attributes in Elements(page).elements:
        assert tag not in ("script", "link", "iframe", "object", "video")
        assert attributes.get("src", "data:").startswith("data:image/webp;base64,") or tag != "img"
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    style = re.search("<style>(.*)</style>", page, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    assert "default-src 'none'" in page
    assert not [file for file in settings.checkpoints if str(file) in page]  # this computer's folders


def test_texts_are_escaped(settings, results):
    clips = replace(results[0].clips, texts=[HOSTILE] * 2, keys=["1: <b>", "2: *x*"], sources=[])
    hostile = [replace(result, name="<i>name", clips=clips, notes=["<u>note"]) for result in results]
    page = as_page(settings, hostile)
    parsed = Elements(page)
    assert not {"script", "b", "i", "u"} & {tag for tag, _ in parsed.elements}
    text = "".join(parsed.texts)
    assert HOSTILE in text and "<i>name" in text and "<u>note" in text
    assert any(attributes.get("alt", "").startswith("1: <b>") for _, attributes in parsed.elements)
    assert emphasis("*a* <b> 2 * 3") == "<em>a</em> &lt;b&gt; 2 * 3"
    assert intervals("my_<b>") == "my_<wbr>&lt;b&gt;"
    assert intervals("0.5 [0.4, <6]") == '0.5 <span class="interval">[0.4, &lt;6]</span>'


def test_videos_are_limited_in_number_and_size(settings, results):
    everything = sum(
        len(image)
        for section in fitting_sections(settings, results, 10**9)[1]
        for row in section["rows"]
        for _, image in row["images"]
    )
    _, sections = fitting_sections(settings, results, everything - 1)
    assert all(len(section["rows"]) == 1 for section in sections) and sections  # one clip fits
    assert fitting_sections(settings, results, 10)[1] == []
    page = as_page(settings, results, 10)
    assert images_of(page) == [] and "Paired differences" in page and 'href="#videos"' not in page


def test_large_videos_are_made_smaller():
    video = torch.rand(3, 2, 60, 80)
    image = Image.open(BytesIO(base64.b64decode(encoded(video, 30, 4).partition(",")[2])))
    image.load()
    assert image.size == (40, 30) and image.n_frames == 2 and image.info["duration"] == 250


def test_the_page_is_reproducible(settings, results):
    assert as_page(settings, results) == as_page(settings, results)
