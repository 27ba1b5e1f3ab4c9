"""Synthetic scenes as clips, and a recipe's domains as data sets."""

import pytest
import torch
import torch.nn.functional as F

from tests.training.clips import EDGES, EVERYTHING, FRAMES, SIZE, Spy, generator, make_folder, same
from training.data.domains import SCENES, lengths, open_clips
from training.data.folder import FolderClips, read_captions
from training.data.shard_writing import PrepareOptions, prepare
from training.data.shards import ShardClips
from training.data.synthetic import clips as module
from training.data.synthetic.captions import captions
from training.data.synthetic.clips import (
    STILLS,
    ClipCache,
    DrawnScenes,
    SyntheticClips,
    draw_mask,
    draw_window,
    make_shard,
    spoil_motion,
)
from training.data.synthetic.scenes import CLIP_FRAMES, scene_seeds
from training.recipe import Domain
from vc_core.checkpoint.loading import load_autoencoder
from vc_core.checkpoint.reading import BUNDLED, read_checkpoint
from vc_core.conditions import CONDITIONS
from vc_core.config import Config
from vc_core.encoders.autoencoder import encode
from vc_core.errors import UserError


@pytest.fixture(scope="module")
def bundled():
    return read_checkpoint(BUNDLED)


@pytest.fixture(scope="module")
def cache(bundled, tmp_path_factory):
    """Two scenes with latents and tokens, which `open_clips` has cached."""
    folder = tmp_path_factory.mktemp("cache")
    domain = Domain(path=folder, count=2)
    reports = []
    clips = open_clips(domain, (64, 64), bundled.config, bundled.parts, lambda *values: reports.append(values))
    assert reports == [("scenes", 2, 2)]
    files = sorted(folder.rglob("*.safetensors"))
    stamps = [file.stat().st_mtime_ns for file in files]
    open_clips(domain, (64, 64), bundled.config, bundled.parts)  # existing files are not written again
    assert stamps == [file.stat().st_mtime_ns for file in sorted(folder.rglob("*.safetensors"))] and len(stamps) == 1
    return clips[16].tensors


def test_scenes_are_the_same_drawn_and_cached(cache):
    drawn = DrawnScenes(SCENES, 2)
    assert isinstance(cache, ClipCache) and len(cache) == len(drawn) == 2
    for name in ("video", "edges", "outline", "object", "depth", "motion"):
        for frames in (slice(None), slice(3, 9)):
            a, b = cache.read(name, 1, frames).float(), drawn.read(name, 1, frames).float()
            if name == "motion":  # zero in the first frame, wherever the window starts
                a = torch.cat([torch.zeros_like(a[:1]), a[1:]])
            assert a.shape == b.shape, name
            assert (a - b).abs().max() <= (0.002 if name in ("motion", "depth") else 1), name


def test_cached_latents_are_those_of_the_scene(cache, bundled):
    video = DrawnScenes(SCENES, 2).read("small", 1).transpose(0, 1)[None].float() / 255
    expected = encode(load_autoencoder(bundled.part("vae")), video)[0]
    sample = SyntheticClips(cache, scale=2.0).sample(1, (), generator())
    assert (sample.latents / 2 - expected).abs().mean() < 0.03 * expected.abs().mean()


def test_windows_are_inside_the_clip_and_have_every_possible_stride():
    windows = [draw_window(16, 4, generator(seed)) for seed in range(300)]
    assert all(w.start >= 0 and w.stop == w.start + 3 * w.step + 1 <= 16 for w in windows)
    assert {w.step for w in windows} == {1, 2, 3, 4, 5}
    assert draw_window(16, 16, generator()) == slice(0, 16, 1)
    assert {draw_window(16, 1, generator(seed)).start for seed in range(200)} == set(range(16))


@pytest.mark.parametrize("kind", ["cached", "drawn"])
@pytest.mark.parametrize("frames", [1, 4, 16])
def test_a_sample_has_the_requested_inputs_in_their_shapes(cache, kind, frames):
    data = SyntheticClips(cache if kind == "cached" else DrawnScenes(SCENES, 2), frames, 24)
    sample = data.sample(1, EVERYTHING, generator(5))
    if kind == "cached":
        assert sample.latents.shape == (4, frames, 8, 8)
        assert sample.text_tokens.shape == (77, 64) and sample.style_embedding.shape == (1, 64)
    else:
        assert sample.latents is None and sample.video.shape == (3, frames, 64, 64)
        assert sample.text.startswith("a") and sample.style.shape == (3, 24, 24)
    assert set(sample.conditions) == set(CONDITIONS)
    for name, tensor in sample.conditions.items():
        spec = CONDITIONS[name]
        assert tensor.shape == (spec.channels, 1 if spec.kind == "spatial" else frames, *(8 * spec.scale,) * 2)
        assert tensor.min() >= spec.low and tensor.max() <= spec.high
    assert not sample.conditions["motion"][:, 0].any()
    assert same(sample, data.sample(1, EVERYTHING, generator(5)))
    other = data.sample(1, EVERYTHING, generator(6))
    assert not torch.equal(sample.conditions["mask"], other.conditions["mask"])


def test_conditions_and_video_are_of_the_same_frames():
    data = SyntheticClips(DrawnScenes(SCENES, 4), 4, 24)
    for seed in range(4):
        sample = data.sample(seed, ("single_image",), generator(seed))
        first = F.interpolate(sample.conditions["single_image"].transpose(0, 1), (64, 64), mode="area")
        distances = [(first[0] - frame).abs().mean() for frame in sample.video.unbind(1)]
        assert min(distances) == distances[0] < 0.03


def test_spoiled_motion_stays_close_to_the_motion():
    motion = torch.zeros(60, 6, 2, 64, 64)
    motion[:, 1:, 0, 16:48, 16:48] = 2.0
    spoiled = spoil_motion(motion, generator())
    assert spoiled.shape == motion.shape and not spoiled[:, 0].any()
    inside, outside = spoiled[:, 1:, :, 20:44, 20:44], spoiled[:, 1:, :, :12]
    present = inside.abs().amax(2, keepdim=True) > 0
    assert 0.03 < 1 - present.float().mean() < 0.15  # up to MISSING of the vectors, in half of the clips
    mean = (inside * present).sum((1, 3, 4)) / present.sum((1, 3, 4))
    assert (mean - torch.tensor([2.0, 0.0])).abs().max() < 0.15
    assert outside.abs().mean((1, 2, 3, 4)).max() < 0.1
    # All blocks of a clip have one size, which differs between clips.
    steps = [int((clip[1, 0, 32].diff() != 0).sum()) for clip in spoiled]
    assert len(set(steps)) > 2


def test_spoiled_motion_depends_only_on_the_generator():
    motion = torch.randn(1, 4, 2, 16, 16)
    assert torch.equal(spoil_motion(motion, generator(3)), spoil_motion(motion.clone(), generator(3)))


def test_masks_repaint_a_part_and_keep_a_part():
    objects = torch.zeros(200, 4, 1, 48, 48)
    objects[:, :, :, 10:20, 10:20] = 1
    keep = draw_mask(objects, generator())
    assert keep.shape == objects.shape and set(keep.unique().tolist()) == {0.0, 1.0}
    painted = 1 - keep.mean((1, 2, 3, 4))
    assert painted.min() > 0.02 and painted.max() < 0.8
    halves, moving = painted == 0.5, (keep * objects).sum((1, 2, 3, 4)) == 0
    assert 0.1 < halves.float().mean() < 0.3 and 0.4 < (moving & ~halves).float().mean() < 0.7
    grown = {int((1 - mask[0, 0]).sum()) for mask in keep[moving & ~halves]}
    assert len(grown) > 2 and min(grown) >= 12 * 12  # wider than the object by various margins
    sides = {tuple(int(k) for k in mask[0, 0, [0, -1, 0, -1], [0, 0, -1, -1]]) for mask in keep[halves]}
    assert sides == {(0, 1, 0, 1), (1, 0, 1, 0), (0, 0, 1, 1), (1, 1, 0, 0)}  # top, bottom, left, right


def test_captions_and_stills_vary_and_match_the_scenes(cache):
    drawn = DrawnScenes(SCENES, 2)
    texts = {SyntheticClips(drawn).sample(0, ("text",), generator(seed)).text for seed in range(12)}
    scene = drawn.scene(0)
    possible = {captions(scene, variation)[0] for variation in range(200)}
    assert len(texts) > 3 and len(texts & possible) > len(texts) / 2
    styles = [SyntheticClips(cache).sample(0, ("style",), generator(seed)).style_embedding for seed in range(20)]
    assert 1 < len({tuple(style.flatten().tolist()) for style in styles}) <= STILLS


def test_inputs_that_are_not_requested_are_not_drawn(monkeypatch):
    spy = Spy(monkeypatch)
    spy.watch(module, "render", "edges", "fitted", "captions", "spoil_motion", "draw_mask")
    data = SyntheticClips(DrawnScenes(SCENES, 2), 4, 24)
    for inputs, called in {
        (): {"render": 1},
        ("text",): {"render": 1, "captions": 1},
        ("style",): {"render": 2, "fitted": 1},
        ("motion",): {"render": 2, "spoil_motion": 1},
        ("mask",): {"render": 3, "draw_mask": 1},
    }.items():
        spy.calls.update(dict.fromkeys(spy.calls, 0))
        sample = data.sample(0, inputs, generator())
        assert {name: count for name, count in spy.calls.items() if count} == called
        assert set(sample.conditions) == set(inputs) & set(CONDITIONS)


def test_a_cache_may_have_fewer_scenes_than_a_shard(cache):
    shard = make_shard(scene_seeds(SCENES, 0, 1), *untrained())
    assert {name: tensor.shape for name, tensor in shard.items()} == {n: (1, *cache.read(n, 0).shape) for n in shard}


def untrained():
    from training.bundled.towers import SIZES
    from vc_core.encoders.autoencoder import new_autoencoder
    from vc_core.encoders.clip import new_towers

    return new_autoencoder(), new_towers(SIZES).eval()


# --- A recipe's domains ---------------------------------------------------------------------------------------------

CONFIG = Config(extraction=EDGES)


def test_domains_open_according_to_their_kind(tmp_path, bundled):
    videos = make_folder(tmp_path / "videos", {"right.mp4": (3, 0)})
    folder = Domain("folder", videos, lengths=(1, FRAMES, FRAMES), rate=5, nominal_height=48)
    opened = open_clips(folder, SIZE, CONFIG, {})
    assert set(opened) == {1, FRAMES} and lengths(folder) == (1, FRAMES, FRAMES)
    assert opened[FRAMES] == FolderClips(videos, read_captions(videos), opened[FRAMES].form, 5, 48)
    assert opened[1].form.frames == 1 and opened[1].form.extraction == EDGES and opened[1].form.style_size == 224
    scenes = open_clips(Domain(count=10**9), (64, 64), CONFIG, {})
    assert len(scenes[16]) == 10**9 and scenes[16].sample(10**9 - 1, (), generator()).video.shape == (3, 16, 64, 64)

    prepare(PrepareOptions(videos, FRAMES, SIZE, latents=BUNDLED), read_captions(videos), tmp_path / "shards")
    shards = Domain("shards", tmp_path / "shards", frames=FRAMES)
    clips = open_clips(shards, SIZE, CONFIG, {})[FRAMES]  # a run without an autoencoder uses any latents
    assert isinstance(clips, ShardClips) and clips.sample(0, (), generator()).latents is not None
    same_factor = Config(extraction=EDGES, autoencoder=bundled.config.autoencoder)
    assert open_clips(shards, SIZE, same_factor, bundled.parts)[FRAMES].sample(0, (), generator()).latents is not None
    with pytest.raises(UserError, match="are from another autoencoder"):
        open_clips(shards, SIZE, CONFIG, bundled.parts)  # another latent factor


@pytest.mark.parametrize(
    ("domain", "size", "message"),
    [
        (Domain("folder"), (64, 64), "has no path"),
        (Domain("shards"), (64, 64), "has no path"),
        (Domain(), (64, 96), "are square"),
        (Domain(frames=CLIP_FRAMES + 1), (64, 64), "are square"),
        (Domain(lengths=(4, 0)), (64, 64), "lengths must be"),
    ],
)
def test_domains_that_cannot_be_opened_report_why(domain, size, message):
    with pytest.raises(UserError, match=message):
        open_clips(domain, size, CONFIG, {})


def test_a_cache_of_scenes_requires_the_encoders(tmp_path):
    with pytest.raises(UserError, match="the autoencoder and the text tower and the image tower"):
        open_clips(Domain(path=tmp_path), (64, 64), CONFIG, {})
