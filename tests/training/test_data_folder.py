"""Folders of videos and images as clips."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.training.clips import EDGES, EVERYTHING, FRAMES, MOTIONS, SIZE, Spy, generator, make_folder, same
from training.data import folder as module
from training.data import sample_fields as making
from training.data.folder import Entry, FolderClips, read_captions
from training.data.sample import BadSample
from training.data.sample_fields import Form
from vc_core.conditions import CONDITIONS, condition_size
from vc_core.config import ExtractionConfig
from vc_core.errors import UserError
from vc_core.video import plan_frames, probe, read_frames, write_video

FORM = Form(SIZE, FRAMES, EDGES, style_size=24)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("videos"))


def clips(videos, form=FORM, **options):
    return FolderClips(videos, read_captions(videos), form, **options)


def test_captions_are_read_from_csv_and_jsonl(videos):
    entries = read_captions(videos)
    assert [entry.file for entry in entries] == list(MOTIONS)
    assert entries[0].caption == "a scene, right" and entries[0].others == {"license": "CC0"}
    assert read_captions(videos, videos / "others.jsonl") == entries


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"file": "x.mp4"}\n', "Line 1 has no caption"),
        ("a.jsonl", '{"file": "x.mp4", "caption": "x"}\n[]\n', "Line 2 .*object"),
        ("a.jsonl", "{\n", "Line 1 .*JSON"),
        ("a.jsonl", "\n", "lists no files"),
        ("a.csv", "name,caption\nx.mp4,x\n", "Line 2 .*'file'"),
        ("a.csv", "file,caption\nx.mp4\n", "Line 2 has no caption"),
        ("a.txt", "x", r"Expected captions as \.csv or \.jsonl"),
    ],
)
def test_wrong_captions_are_reported_with_their_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_captions(tmp_path, tmp_path / name)


def test_clips_are_taken_inside_the_span_of_their_entry(tmp_path):
    """The rate is chosen as for a video that consists of the span only."""
    colours = torch.eye(3).repeat_interleave(24, dim=0).T.reshape(1, 3, 72, 1, 1).expand(1, 3, 72, 48, 64)
    write_video(tmp_path / "a.mp4", colours, 12)
    rows = ["red,0,2", "green,2,4", "blue,4,", "blue,4,99", "none,7,8", "short,1,1.1"]
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption,start,end", *(f"a.mp4,{row}" for row in rows)]))
    for form, rate in ((FORM, None), (FORM, 5.0), (replace(FORM, frames=8), None)):
        data = clips(tmp_path, form, rate=rate)
        for number, colour in enumerate((0, 1, 2, 2)):
            for seed in range(4):
                video = data.sample(number, (), generator(seed)).video
                assert (video.argmax(dim=0) == colour).all() and (video[colour] > 0.8).all()
        with pytest.raises(BadSample, match="6 seconds long, but its clip starts at 7 s"):
            data.sample(4, (), generator())
        with pytest.raises(BadSample, match=r"a\.mp4 \(1 to 1\.1 s\) is too short"):
            data.sample(5, (), generator())


def test_a_text_next_to_each_file_is_its_caption(tmp_path):
    (tmp_path / "street").mkdir()
    for name, text in {
        "swan.mp4": "",
        "swan.TXT": "a black\nswan\n",
        "street/1.png": "",
        "street/1.txt": "",
        ".x": "",
    }.items():
        (tmp_path / name).write_text(text)
    assert read_captions(tmp_path) == [Entry("street/1.png", "", {}), Entry("swan.mp4", "a black swan", {})]
    (tmp_path / "other.mp4").touch()
    with pytest.raises(UserError, match=r"1 file has no text file .*other\.mp4"):
        read_captions(tmp_path)
    (tmp_path / "captions.csv").write_text("file,caption\nother.mp4,x\n")
    assert read_captions(tmp_path) == [Entry("other.mp4", "x", {})]


def test_a_folder_without_captions_is_refused(tmp_path):
    with pytest.raises(UserError, match="contains no captions"):
        read_captions(tmp_path)
    with pytest.raises(UserError, match="nowhere does not exist"):
        read_captions(tmp_path / "nowhere")


def test_a_sample_has_the_requested_inputs_in_their_shapes(videos):
    sample = clips(videos).sample(0, EVERYTHING, generator())
    assert sample.video.shape == (3, FRAMES, *SIZE)
    assert sample.text == "a scene, right"
    assert sample.style.shape == (3, 24, 24)
    assert sample.source.shape == (3, FRAMES, *condition_size("depth", SIZE))
    assert set(sample.conditions) == {"motion", "mask", "single_image"}  # the step computes the others from the source
    for name, tensor in sample.conditions.items():
        spec = CONDITIONS[name]
        frames = FRAMES if spec.kind == "temporal" else 1
        assert tensor.shape == (spec.channels, frames, *condition_size(name, SIZE))
    assert torch.equal(sample.conditions["single_image"], sample.source[:, :1])
    mask = sample.conditions["mask"]
    assert torch.equal(mask[:3] * mask[3:], (sample.source * 2 - 1) * mask[3:])
    assert set(mask[3].unique().tolist()) <= {0.0, 1.0}


def test_motion_is_that_of_the_video(videos):
    dense = ExtractionConfig(motion_layout="dense", motion_unit="pixels")
    data = clips(videos, Form((96, 128), FRAMES, dense))
    for index, motion in enumerate(MOTIONS.values()):
        field = data.sample(index, {"motion"}, generator()).conditions["motion"]
        assert field[:, 0].abs().max() == 0
        middle = field[:, 1:, 24:-24, 24:-24].flatten(1).median(dim=1).values
        assert middle.tolist() == pytest.approx([3 * step for step in motion], abs=0.5)  # 4 of 12 frames per second


def test_motion_is_computed_at_the_nominal_height(videos):
    """Points are in pixels of the source: half the height halves them. After scaling up, a point is 9/16 as high."""

    def largest(height):
        data = clips(videos, Form((96, 128), FRAMES), nominal_height=height)
        return data.sample(0, {"motion"}, generator()).conditions["motion"].abs().max().item()

    assert largest(None) == pytest.approx(9, abs=1) and largest(48) == pytest.approx(4.5 * 9 / 16, abs=0.6)


def test_frames_are_random_and_depend_on_the_generator(videos):
    data = clips(videos)
    assert same(data.sample(0, EVERYTHING, generator(3)), data.sample(0, EVERYTHING, generator(3)))
    pixels = {tuple(data.sample(0, (), generator(seed)).video[:, 0, 16, 20].tolist()) for seed in range(12)}
    assert 2 <= len(pixels) <= 6  # of 13 frames at 12 per second, 0.33 s are spare
    path = videos / "right.mp4"
    beginning = read_frames(path, plan_frames(probe(path), FRAMES), SIZE)[0]
    assert any(torch.equal(data.sample(0, (), generator(seed)).video, beginning) for seed in range(40))


def test_inputs_that_are_not_requested_are_not_computed(videos, monkeypatch):
    spy = Spy(monkeypatch)
    spy.watch(module, "extract")
    spy.watch(making, "random_mask", "fitted", "masked_video")
    sizes = []
    fit = making.fit
    monkeypatch.setattr(making, "fit", lambda picture, size: sizes.append(size) or fit(picture, size))
    data = clips(videos)

    def calls(*inputs):
        sizes.clear()
        spy.calls.update(dict.fromkeys(spy.calls, 0))
        sample = data.sample(0, inputs, generator())
        return sample, {name for name, count in spy.calls.items() if count}, sizes.count(FORM.large)

    sample, called, large = calls()
    assert (called, large) == (set(), 0)
    assert sample.text == "" and sample.conditions == {} and sample.style is sample.source is None
    assert calls("text")[1:] == (set(), 0)
    assert calls("motion")[1:] == ({"extract"}, 0)
    assert calls("style")[1:] == ({"fitted"}, 0)
    assert calls("mask")[1:] == ({"random_mask", "masked_video"}, FRAMES)
    assert calls("single_image")[1:] == (set(), 1)
    sample, called, large = calls("single_sketch")
    assert (called, large) == (set(), 1) and sample.source.shape[1] == 1
    assert calls("depth")[1:] == (set(), FRAMES)


def test_bad_files_are_reported_with_name_and_reason(tmp_path):
    make_folder(tmp_path, {"right.mp4": (3, 0)})
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "right.mp4").read_bytes()[:700])
    entries = [{"file": name, "caption": ""} for name in ("cut.mp4", "missing.mp4", "right.mp4")]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, entries)))
    data = FolderClips(tmp_path, read_captions(tmp_path, tmp_path / "list.jsonl"), Form(SIZE, 14))
    for index, message in enumerate(["cannot be read", "there is no file at", "too short"]):
        with pytest.raises(BadSample, match=message) as caught:
            data.sample(index, ("motion",), generator())
        assert str(tmp_path / entries[index]["file"]) in str(caught.value)


def test_errors_in_our_code_are_not_bad_samples(videos, monkeypatch):
    monkeypatch.setattr(making, "random_mask", lambda *_: (_ for _ in ()).throw(ValueError("ours")))
    with pytest.raises(ValueError, match="ours"):
        clips(videos).sample(0, ("mask",), generator())


def test_images_are_clips_of_one_frame(tmp_path):
    Image.new("RGB", (80, 64), (255, 0, 0)).save(tmp_path / "red.png")
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file": "red.png", "caption": "red"}))
    data = clips(tmp_path, Form(SIZE, 1, EDGES, 24))
    sample = data.sample(0, EVERYTHING, generator())
    assert sample.video.shape == (3, 1, *SIZE)
    assert torch.equal(sample.video, torch.tensor([1.0, 0, 0]).view(3, 1, 1, 1).expand(3, 1, *SIZE))
    assert not sample.conditions["motion"].any() and sample.conditions["motion"].shape[1] == 1
    with pytest.raises(UserError, match=r"red\.png is an image"):
        clips(tmp_path)
