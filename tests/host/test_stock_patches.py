"""Every stock node that patches or guides a MODEL either affects our network, or a note says that it does not."""

import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import Tensor

from tests.host.graph import Node
from tests.host.scene import Scene, error, saved_latent

FRAMES = 4  # of the checkpoint's 16; enough here


@dataclass
class Row:
    """A node before the sampler.

    Attributes:
        inputs: the node's inputs that are not defaults. A function returns one for the scene and the STCEncode.
        effect: whether the node changes the video.
        note: words of the sampler's note about it; "" if there is none.
        steps: sampling steps until its effect shows.
        mask: whether to sample an existing video with a mask.
    """

    inputs: dict[str, Any] = field(default_factory=dict)
    effect: bool = True
    note: str = ""
    steps: int = 2
    mask: bool = False


def other_model(scene, stc):
    """Add a MODEL with other weights."""
    return scene.add("UNetSelfAttentionMultiply", q=1.5, v=3.0)


def other_text(scene, stc):
    return scene.text("a green square")


def picture(scene, stc):
    return scene.add("VCExampleClip", size=64, frames=FRAMES)[1]


def tonemapped(scene, stc):
    return scene.add("LatentOperationTonemapReinhard", multiplier=0.5)


POSITIVE, NEGATIVE = (lambda scene, stc: stc[0]), (lambda scene, stc: stc[1])
FOREIGN = {"effect": False, "note": "It is for other networks"}
SMALL = {"width": 64, "height": 64, "length": FRAMES}
MERGED = {"model1": lambda scene, stc: scene.loader, "model2": other_model}
NOWHERE = {"effect": False, "note": "have no effect on this model"}
CACHE = {"reuse_threshold": 3.0, "start_percent": 0.0}
SKIP = {"start_percent": 0.0}

PATCHES = {
    # guidance
    "APG": Row(),
    "CFGNorm": Row({"strength": 0.5}),
    "CFGOverride": Row({"cfg": 4.0}),
    "CFGZeroStar": Row(),
    "Epsilon Scaling": Row({"scaling_factor": 1.1}),
    "FreSca": Row({"scale_high": 1.5, "freq_cutoff": 2}),
    "LatentApplyOperationCFG": Row({"operation": tonemapped}),
    "Mahiro": Row(),
    "NAGuidance": Row(),
    "PerpNeg": Row({"empty_conditioning": other_text}),
    "PerturbedAttentionGuidance": Row(),
    "RenormCFG": Row({"renorm_cfg": 0.8}),
    "RescaleCFG": Row(),
    "TCFG": Row(),
    "VideoLinearCFGGuidance": Row(note="varies cfg over the videos of a batch"),
    "VideoTriangleCFGGuidance": Row(note="varies cfg over the videos of a batch"),
    # the network's layers
    "FreeU": Row(),
    "FreeU_V2": Row(),
    "HyperTile": Row({"tile_size": 32}, effect=False),  # for attention at the latent's size, which is not used here
    "PatchModelAddDownscale": Row(),
    "SkipLayerGuidanceDiT": Row(SKIP, **NOWHERE),
    "SkipLayerGuidanceDiTSimple": Row(SKIP, **NOWHERE),
    "SkipLayerGuidanceSD3": Row(SKIP, **NOWHERE),
    "TomePatchModel": Row(effect=False),  # as HyperTile
    # weights
    "ModelComputeDtype": Row({"dtype": "bf16"}),
    "ModelMergeAdd": Row(MERGED),
    "ModelMergeBlocks": Row(
        {**MERGED, "input": 1.0, "middle": 0.0, "out": 0.5}, note="ModelMergeBlocks: out had no effect"
    ),
    "ModelMergeSimple": Row({**MERGED, "ratio": 0.5}),
    "ModelMergeSubtract": Row({**MERGED, "multiplier": 0.1}),
    "UNetCrossAttentionMultiply": Row({"q": 1.2}),
    "UNetCrossAttentionMultiply out": Row({"out": 1.2}, effect=False, note="UNetCrossAttentionMultiply: out had no"),
    "UNetSelfAttentionMultiply": Row({"q": 1.2}),
    "UNetSelfAttentionMultiply out": Row({"out": 1.2}, effect=False, note="UNetSelfAttentionMultiply: out had no"),
    "UNetTemporalAttentionMultiply": Row(
        {"self_temporal": 0.5}, effect=False, note="UNetTemporalAttentionMultiply: self_temporal had no effect"
    ),
    # sampling
    "ContextWindowsManual": Row({"context_length": 2, "context_overlap": 1, "dim": 2}),
    "DifferentialDiffusion": Row({"strength": 0.5}, mask=True),
    "LTXVContextWindows": Row({"context_length": 17, "context_overlap": 8}),  # 3 frames of this network
    "MiniMaxH3SigmaShift": Row(),
    "ModelAttentionBackend": Row(effect=False),  # it changes the speed, not the video
    "ModelSamplingContinuousEDM": Row(),
    "ModelSamplingContinuousV": Row(),
    "ModelSamplingDiscrete": Row({"sampling": "v_prediction"}),
    "ModelSamplingDiscrete own": Row(
        {"sampling": "v_prediction", "zsnr": True}, effect=False
    ),  # the checkpoint's own settings
    "ModelSamplingDiscrete lcm": Row(
        {"sampling": "lcm", "zsnr": True}, note="'lcm' is for networks that predict noise"
    ),
    "TemporalScoreRescaling": Row(),
    "WanContextWindowsManual": Row({"context_length": 9, "context_overlap": 2}),  # 3 frames of this network
    # caches
    "EasyCache": Row(CACHE, steps=6),
    "LazyCache": Row(CACHE, steps=8),
    # of other networks
    "ARVideoI2V": Row({"vae": lambda scene, stc: scene.loader[3], "start_image": picture, **SMALL}, **FOREIGN),
    "ChromaRadianceOptions": Row(**FOREIGN),
    "LTXVModalityGuidance": Row(**FOREIGN),
    "LTXVSpatioTemporalGuidance": Row(**FOREIGN),
    "ScaleROPE": Row({"scale_x": 2.0}, **FOREIGN),
    "WanAnimate2Cache": Row(**FOREIGN),
    "wanBlockSwap": Row(**FOREIGN),
}
GUIDERS = {
    "BasicGuider": Row({"conditioning": POSITIVE}),
    "CFGGuider": Row({"positive": POSITIVE, "negative": NEGATIVE, "cfg": 4.0}),
    "DualCFGGuider": Row({"cond1": POSITIVE, "cond2": other_text, "negative": NEGATIVE, "cfg_conds": 2.0}),
    "PerpNegGuider": Row({"positive": POSITIVE, "negative": NEGATIVE, "empty_conditioning": other_text, "cfg": 2.0}),
}
ROWS = {**PATCHES, **GUIDERS}
REFUSED = ("FluxKVCache", "SelfAttentionGuidance")
ROUNDED = ("SkipLayer", "LTXVModality", "LTXVSpatioTemporal", "ModelAttentionBackend")
"""Beginnings of the names of nodes that add a side to the batch or replace the attention, which changes rounding."""


@dataclass
class Outcome:
    """The result of a row: a latent, one with the same steps without the node, and the sampler's note."""

    latent: Tensor
    plain: Tensor
    note: str


def node_of(name: str) -> str:
    """Return the node's id: a node may have several rows."""
    return name if name == "Epsilon Scaling" else name.partition(" ")[0]


def absent(host, name):
    if node_of(name) not in host.nodes:
        pytest.skip(f"this ComfyUI has no {node_of(name)}")


def scene_and_stc(host) -> tuple[Scene, Node]:
    scene = Scene(host)
    image = scene.add("VCSingleImage", image=scene.add("VCExampleClip", frames=FRAMES)[1])
    return scene, scene.encode(motion=scene.add("VCCameraMotion", pan_right=0.3, frames=FRAMES), single_image=image)


def patched(scene: Scene, stc: Node, name: str) -> Node:
    inputs = ROWS[name].inputs if name in ROWS else {}
    values = {key: value(scene, stc) if callable(value) else value for key, value in inputs.items()}
    return scene.add(node_of(name), **values)


def guided(scene: Scene, stc: Node, guider: Node, steps: int) -> Node:
    return scene.add(
        "SamplerCustomAdvanced",
        noise=scene.add("RandomNoise", noise_seed=1),
        guider=guider,
        sampler=scene.add("KSamplerSelect", sampler_name="euler"),
        sigmas=scene.add("BasicScheduler", scheduler="karras", steps=steps, denoise=1.0),
        latent_image=stc[2],
    )


@pytest.fixture(scope="module")
def outcomes(host) -> dict[str, Outcome]:
    """Run all rows in one graph, which loads and encodes once."""
    scene, stc = scene_and_stc(host)
    encoded = scene.add("VAEEncode", pixels=picture(scene, stc), vae=scene.loader[3])
    half = scene.add("SolidMask", value=0.5, width=64, height=64)
    masks = {False: stc[2], True: scene.add("SetLatentNoiseMask", samples=encoded, mask=half)[0]}
    plain: dict[tuple[int, bool], Node] = {}
    samplers: dict[str, Node] = {}
    for name, row in ROWS.items():
        if node_of(name) not in host.nodes:
            continue
        settings = {"steps": row.steps, "latent": masks[row.mask]}
        if (row.steps, row.mask) not in plain:
            plain[row.steps, row.mask] = scene.sample(stc, **settings)
        node = patched(scene, stc, name)
        samplers[name] = (
            guided(scene, stc, node, row.steps) if name in GUIDERS else scene.sample(stc, model=node, **settings)
        )
    saved = {node: scene.add("SaveLatent", samples=node) for node in (*plain.values(), *samplers.values())}
    result = host.run(scene.graph)
    notes = dict(data for kind, data in result.events if kind == "text")  # the last text of each node
    latents = {node: saved_latent(result, save) for node, save in saved.items()}
    return {
        name: Outcome(latents[node], latents[plain[ROWS[name].steps, ROWS[name].mask]], notes.get(node, ""))
        for name, node in samplers.items()
    }


@pytest.mark.parametrize("name", ROWS)
def test_a_stock_patch_has_an_effect_or_a_note_says_so(host, outcomes, name):
    absent(host, name)
    row, outcome = ROWS[name], outcomes[name]
    assert outcome.latent.isfinite().all()
    change = error(outcome.latent, outcome.plain)
    same = 5e-5 if node_of(name).startswith(ROUNDED) else 1e-5
    assert change > 1e-4 if row.effect else change < same, change
    assert (row.note in outcome.note) if row.note else ("effect" not in outcome.note)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_by_name(host, name):
    absent(host, name)
    scene, stc = scene_and_stc(host)
    scene.add("SaveLatent", samples=scene.sample(stc, model=patched(scene, stc, name)))
    failed = host.fails(scene.graph)
    assert f"'{name}'" in failed["exception_message"] and "Remove or bypass that node" in failed["exception_message"]


def test_the_note_appears_at_every_run_and_through_a_guider(host):
    """Also for a node that is not the last one before the sampler."""
    for cfg in (2.0, 3.0):
        scene, stc = scene_and_stc(host)
        model = scene.add("UNetTemporalAttentionMultiply", cross_temporal=2.0)
        model = scene.add("RescaleCFG", model=scene.add("SkipLayerGuidanceDiTSimple", model=model, **SKIP))
        guider = scene.add("CFGGuider", model=model, positive=stc[0], negative=stc[1], cfg=cfg)
        scene.add("SaveLatent", samples=guided(scene, stc, guider, steps=2))
        *_, text = (data[1] for kind, data in host.run(scene.graph).events if kind == "text")
        assert text.count("cross_temporal had no effect") == 1
        assert text.count("SkipLayerGuidanceDiTSimple") == 1


@pytest.mark.parametrize(("kind", "most"), [("EasyCache", 0.5), ("LazyCache", float("inf"))])
def test_a_cache_skips_steps(host, kind, most):
    """EasyCache wraps the network's forward, LazyCache the sampler's prediction, for which these steps are too few.
    Without guidance, all versions of EasyCache are correct."""
    scene, stc = scene_and_stc(host)
    sampled = [
        scene.sample(stc, cfg=1.0, steps=6, **inputs)
        for inputs in ({}, {"model": scene.add(kind, reuse_threshold=0.5, start_percent=0.0)})
    ]
    before = len(host.log())
    plain, cached = scene.latents(*sampled)
    (skipped,) = re.findall(rf"{kind} - skipped (\d+)/6", host.log()[before:])
    assert int(skipped) > 0
    assert 1e-4 < error(cached, plain) < most
