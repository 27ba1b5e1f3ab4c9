"""ComfyUI's own nodes with the pack's models and 5-D latents."""

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image, to_tensor

from tests.host.scene import error, saved_latent
from vc_core.demo import draw_clip

FRAMES = 8  # half of what the checkpoint was trained for, which is enough here


@pytest.fixture
def moved(scene):
    """An STCEncode with motion and a single image."""
    image = scene.add("VCSingleImage", image=scene.add("VCExampleClip", frames=FRAMES)[1])
    return scene.encode(motion=scene.add("VCCameraMotion", pan_right=0.3, frames=FRAMES), single_image=image)


def half_mask(scene, size=64):
    """Add a MASK that is black on the left and white on the right."""
    white = scene.add("SolidMask", value=1.0, width=size, height=size)
    black = scene.add("SolidMask", value=0.0, width=size // 2, height=size)
    return scene.add("MaskComposite", destination=white, source=black, x=0, y=0, operation="multiply")


def pictures(files):
    return torch.stack([to_tensor(Image.open(file).convert("RGB")) for file in files], dim=1)[None]  # (1, 3, F, H, W)


# --- VAEs -------------------------------------------------------------------------------------------------------------


def test_a_video_comes_back_from_the_vae(scene):
    pixels = scene.add("VCExampleClip", size=64, frames=6)[1]
    latent = scene.add("VAEEncode", pixels=pixels, vae=scene.loader[3])
    images = scene.add("SaveImage", images=scene.add("VAEDecode", samples=latent, vae=scene.loader[3]))
    saved = scene.add("SaveLatent", samples=latent)
    result = scene.host.run(scene.graph)
    assert saved_latent(result, saved).shape == (1, 4, 6, 8, 8)
    assert (pictures(result.files_of(images)) - draw_clip(size=64, frames=6)).square().mean() < 0.01


def test_tiles_decode_and_encode_every_frame(scene):
    pixels = scene.add("VCExampleClip", size=96, frames=3)[1]
    tiles = {"tile_size": 64, "overlap": 16, "vae": scene.loader[3]}
    complete = scene.add("VAEEncode", pixels=pixels, vae=scene.loader[3])
    tiled = scene.add("VAEEncodeTiled", pixels=pixels, **tiles)
    shown = [
        scene.add("SaveImage", images=scene.add("VAEDecode", samples=complete, vae=scene.loader[3])),
        scene.add("SaveImage", images=scene.add("VAEDecodeTiled", samples=complete, **tiles)),
    ]
    saved = [scene.add("SaveLatent", samples=node) for node in (complete, tiled)]
    result = scene.host.run(scene.graph)
    latents = [saved_latent(result, node) for node in saved]
    assert latents[1].shape == (1, 4, 3, 12, 12)
    assert error(latents[1], latents[0]) < 0.2
    videos = [pictures(result.files_of(node)) for node in shown]
    assert (videos[1] - videos[0]).square().mean() < 0.003


# --- Samplers ---------------------------------------------------------------------------------------------------------


def test_all_samplers_give_the_same_video(scene, moved):
    """KSampler, KSamplerAdvanced in two parts, SamplerCustom, SamplerCustomAdvanced and ours."""
    sides = {"positive": moved[0], "negative": moved[1]}
    steps = {"steps": 4, "cfg": 2.0, "sampler_name": "euler", "scheduler": "karras", **sides}
    first = scene.add(
        "KSamplerAdvanced", **steps, noise_seed=1, add_noise="enable", latent_image=moved[2], start_at_step=0,
        end_at_step=2, return_with_leftover_noise="enable",
    )  # fmt: skip
    second = scene.add(
        "KSamplerAdvanced", **steps, noise_seed=1, add_noise="disable", latent_image=first, start_at_step=2,
        end_at_step=10000, return_with_leftover_noise="disable",
    )  # fmt: skip
    custom = {
        "sampler": scene.add("KSamplerSelect", sampler_name="euler"),
        "sigmas": scene.add("BasicScheduler", scheduler="karras", steps=4, denoise=1.0),
        "latent_image": moved[2],
    }
    noise, guider = scene.add("RandomNoise", noise_seed=1), scene.add("CFGGuider", cfg=2.0, **sides)
    guided = scene.add("SamplerCustomAdvanced", noise=noise, guider=guider, **custom)
    ours, *others = scene.latents(
        scene.sample(moved, steps=4),
        scene.stock_sample(moved, steps=4),
        second,
        scene.add("SamplerCustom", add_noise=True, noise_seed=1, cfg=2.0, **sides, **custom),
        guided,
    )
    for other in others:
        assert error(other, ours) < 1e-5


def test_denoise_sets_how_much_a_video_changes(scene, moved):
    source = scene.add("VAEEncode", pixels=scene.add("VCExampleClip", size=64, frames=FRAMES)[1], vae=scene.loader[3])
    before, little, ours, stock = scene.latents(
        source,
        scene.sample(moved, latent=source, denoise=0.2),
        scene.sample(moved, latent=source, denoise=0.6),
        scene.stock_sample(moved, latent_image=source, denoise=0.6),
    )
    assert error(ours, stock) < 1e-5
    assert 0.0 < error(little, before) < error(ours, before)


@pytest.mark.parametrize("scheduler", ["karras", "ddim_released"])
def test_a_denoise_of_0_changes_nothing(scene, scheduler):
    encoded = scene.add("VAEEncode", pixels=scene.add("VCExampleClip")[1], vae=scene.loader[3])
    same = scene.sample(scene.encode(), latent=encoded, scheduler=scheduler, denoise=0.0)
    assert torch.equal(*scene.latents(encoded, same))


def test_samplers_of_every_family_run(scene, moved):
    names = ["ddim", "dpmpp_2m_sde", "euler_ancestral", "lcm", "res_multistep", "uni_pc"]
    for latent in scene.latents(*(scene.stock_sample(moved, sampler_name=name, steps=3) for name in names)):
        assert latent.shape == (1, 4, FRAMES, 8, 8)
        assert 0.3 < latent.std() < 3  # also false of NaN


def test_each_item_of_a_batch_is_its_own_video(scene):
    conditions = {"motion": scene.add("VCCameraMotion", zoom=1.5, frames=FRAMES)}
    both, alone = scene.encode(**conditions, batch_size=2), scene.encode(**conditions)
    shown = scene.add("SaveImage", images=scene.add("VAEDecode", samples=scene.sample(both), vae=scene.loader[3]))
    saved = [scene.add("SaveLatent", samples=scene.sample(stc)) for stc in (both, alone)]
    result = scene.host.run(scene.graph)
    batch, single = (saved_latent(result, node) for node in saved)
    assert error(batch[:1], single) < 1e-5
    assert error(batch[1:], single) > 0.1
    assert len(result.files_of(shown)) == 2 * FRAMES


def test_each_item_of_a_batch_of_long_videos_is_its_own_video(scene):
    motion = scene.add("VCCameraMotion", pan_right=0.4, frames=24)
    single, batch = scene.latents(*(scene.sample(scene.encode(motion=motion, batch_size=n)) for n in (1, 2)))
    assert error(batch[:1], single) < 1e-4
    assert error(batch[1:], single) > 0.1


def test_a_prompt_may_be_longer_than_the_tower(scene):
    long = scene.text("a red circle on a background of blue and white stripes, " * 12)
    latent, plain = scene.latents(
        *(scene.sample(scene.encode(positive=p, frames=FRAMES)) for p in (long, scene.positive))
    )
    assert latent.isfinite().all() and error(latent, plain) > 1e-3


# --- Parts of the frame -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["one for all frames", "one for each frame"])
def test_a_noise_mask_keeps_what_is_black(scene, moved, mask):
    clip = scene.add("VCExampleClip", size=64, frames=FRAMES, speed=2.0)
    source = scene.add("VAEEncode", pixels=clip[1], vae=scene.loader[3])
    area = half_mask(scene) if mask == "one for all frames" else clip[3]
    masked = scene.add("SetLatentNoiseMask", samples=source, mask=area)
    before, after = scene.latents(source, scene.sample(moved, latent=masked))
    changed = (after - before).abs().amax((0, 1)) > 1e-4  # (F, h, w)
    if mask == "one for all frames":
        assert not changed[..., :4].any() and changed[..., 4:].float().mean() > 0.9
    else:  # the disc goes from the middle to the right
        across = changed.float().mean((1, 2)), changed[0].any(0).nonzero(), changed[-1].any(0).nonzero()
        assert across[0].min() > 0 and across[0].max() < 0.2
        assert across[1].float().mean() + 2 < across[2].float().mean()


PARTS = {
    "ConditioningSetMask": (lambda s: {"mask": half_mask(s), "set_cond_area": "default"}, (..., slice(4))),
    "ConditioningSetAreaPercentageVideo": (
        lambda s: {"width": 0.5, "height": 1.0, "temporal": 1.0, "x": 0.5, "y": 0.0, "z": 0.0}, (..., slice(4)),
    ),
    "ConditioningSetAreaPercentageVideo in time": (
        lambda s: {"width": 1.0, "height": 1.0, "temporal": 0.5, "x": 0.0, "y": 0.0, "z": 0.5},
        (slice(None), slice(None), slice(FRAMES // 2)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_prompt_for_a_part_of_the_video(scene, moved, part):
    """Two prompts, one only for a part: after one step, the rest is the same as without it."""
    inputs, rest = PARTS[part]
    inputs = {"strength": 1.0, **inputs(scene)}
    other = dict(scene.graph[moved]["inputs"]) | {"positive": scene.text("a green square")[0]}
    local = scene.add(part.split()[0], conditioning=scene.add("STCEncode", **other)[0], **inputs)
    both = scene.add("ConditioningCombine", conditioning_1=local, conditioning_2=moved[0])
    complete, partial = scene.latents(scene.sample(moved, steps=1), scene.sample(moved, steps=1, positive=both))
    torch.testing.assert_close(partial[rest], complete[rest], rtol=1e-4, atol=1e-4)
    assert error(partial, complete) > 0.01


def test_an_area_sees_its_own_part_of_the_conditions(scene):
    """Two images that only differ on the far left are the same for an area on the right."""
    left_is_black = draw_clip(size=64, frames=1)
    left_is_black[..., :16] = 0
    plain = scene.encode(frames=FRAMES)

    def on_the_right(stc):
        right = scene.add(
            "ConditioningSetAreaPercentageVideo", conditioning=stc[0], width=0.5, height=1.0, temporal=1.0,
            x=0.5, y=0.0, z=0.0, strength=1.0,
        )  # fmt: skip
        both = scene.add("ConditioningCombine", conditioning_1=right, conditioning_2=plain[0])
        return scene.sample(plain, steps=1, positive=both)

    samples = [on_the_right(plain)]
    for name, image in {"complete.png": draw_clip(size=64, frames=1), "black.png": left_is_black}.items():
        to_pil_image(image[0, :, 0]).save(scene.host.folder / "input" / name)
        single = scene.add("VCSingleImage", image=scene.add("LoadImage", image=name))
        samples.append(on_the_right(scene.encode(single_image=single, frames=FRAMES)))
    without, complete, black = scene.latents(*samples)
    assert error(complete, without) > 0.01
    assert torch.equal(complete, black)


def test_a_condition_for_a_part_of_the_schedule(scene, moved):
    """A stock node that limits a CONDITIONING to a part of the schedule also limits our conditions."""
    plain = scene.encode(positive=scene.text(""), frames=FRAMES)
    halves = [
        scene.add("ConditioningSetTimestepRange", conditioning=stc[0], start=start, end=end)
        for stc, start, end in ((moved, 0.0, 0.5), (plain, 0.5, 1.0))
    ]
    both = scene.add("ConditioningCombine", conditioning_1=halves[0], conditioning_2=halves[1])
    complete, changed = scene.latents(scene.sample(moved, steps=4), scene.sample(moved, steps=4, positive=both))
    assert changed.isfinite().all() and error(changed, complete) > 0.01


# --- Context windows --------------------------------------------------------------------------------------------------


ANCHOR = "causal_window_fix"
"""A switch in newer ComfyUIs, on by default, that adds a frame before every window but the first."""


def cut(scene, anchor=False, **inputs):
    """Add stock context windows along the frames to the MODEL."""
    windows = "ContextWindowsManual"
    switch = {ANCHOR: anchor} if ANCHOR in scene.host.nodes[windows]["input"]["required"] else {}
    return scene.add(windows, dim=2, **switch, **inputs)


def test_stock_context_windows_equal_ours_without_overlap(scene):
    """Each window has the conditions of its own frames, with either node."""
    frames = 2 * FRAMES
    motion = scene.add("VCCameraMotion", pan_right=0.5, frames=frames, easing="ease_in_out")
    stc = scene.encode(motion=motion, single_image=scene.add("VCSingleImage", image=scene.add("VCExampleClip")[1]))
    windows = cut(scene, context_length=FRAMES, context_overlap=0)
    ours, stock, complete = scene.latents(
        scene.sample(stc, context_length=FRAMES, context_overlap=0),
        scene.stock_sample(stc, model=windows),
        scene.stock_sample(stc),
    )
    assert ours.shape == (1, 4, frames, 8, 8)
    assert error(stock, ours) < 1e-5
    assert error(complete, ours) > 0.01


def test_a_frame_before_a_window_has_its_own_conditions(scene):
    """The second of two 8-frame windows also has frame 7: the same nine frames as the second of two 9-frame windows."""
    if ANCHOR not in scene.host.nodes["ContextWindowsManual"]["input"]["required"]:
        pytest.skip("this ComfyUI does not add a frame before a context window")
    stc = scene.encode(motion=scene.add("VCCameraMotion", pan_right=0.5, frames=2 * FRAMES, easing="ease_in_out"))
    models = [
        cut(scene, context_length=length, context_overlap=overlap, anchor=anchor)
        for length, overlap, anchor in ((FRAMES, 0, True), (FRAMES + 1, 1, False), (FRAMES, 0, False))
    ]
    anchored, longer, without = scene.latents(*(scene.stock_sample(stc, steps=1, model=model) for model in models))
    theirs_alone = slice(FRAMES + 1, None)  # frames 7 and 8 are in both windows of 9
    assert error(anchored[:, :, theirs_alone], longer[:, :, theirs_alone]) < 1e-5
    assert error(anchored[:, :, :FRAMES], without[:, :, :FRAMES]) < 1e-5
    assert error(anchored, without) > 1e-3


@pytest.mark.parametrize("schedule", [0, 1, 2, 3])
def test_every_schedule_of_the_stock_context_windows_runs(scene, schedule):
    options = scene.host.nodes["ContextWindowsManual"]["input"]["required"]["context_schedule"][1]["options"]
    stc = scene.encode(motion=scene.add("VCCameraMotion", pan_right=0.5, frames=14))
    windows = cut(scene, context_length=FRAMES, context_overlap=4, context_schedule=options[schedule])
    (latent,) = scene.latents(scene.sample(stc, model=windows))
    assert latent.shape == (1, 4, 14, 8, 8) and latent.isfinite().all()
