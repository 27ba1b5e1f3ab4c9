"""Wrong wiring and wrong files: an error on the node that fails, which names the socket or the file."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.core.odd_files import of_streams, png_film_bomb
from vc_core.checkpoint.reading import BUNDLED as BUNDLED_FILE
from vc_core.demo import draw_clip
from vc_core.video import write_video


def depth_of(scene, output=2):
    """Add the depth of an output of the example clip; output 2 has the depth maps."""
    return scene.add("DepthSequence", video=scene.add("VCExampleClip")[output], input="depth maps, near is bright")


def styled(scene, **inputs):
    style = scene.add("StyleEmbed", positive=scene.positive, negative=scene.negative, **inputs)
    return scene.encode(positive=style[0], negative=style[1])


def motion_of(scene, file, **inputs):
    return scene.encode(motion=scene.add("MotionVectorExtract", video=scene.add("LoadVideo", file=file), **inputs))


def clip_files(scene):
    """Write a file of 3 frames, and the first half of it."""
    folder = scene.host.folder / "input"
    write_video(folder / "short.mp4", draw_clip(frames=3), 8)
    content = (folder / "short.mp4").read_bytes()
    (folder / "damaged.mp4").write_bytes(content[: len(content) // 2])


def wide_files(scene):
    """Write a video that is wider than the motion encoder supports, and one whose frames would fill the memory."""
    folder = scene.host.folder / "input"
    of_streams(folder / "wide.mkv", ("ffv1", 4, (64, 16400), (0, 0, 200)))
    png_film_bomb(folder / "large.mov")


# Mistake -> the node with the error, words of its message, and a function that builds the graph up to an STCEncode. The
# test then adds a sampler.
WIRING = {
    "another condition's socket": (
        "STCEncode", ["'motion'", "'depth'"],
        lambda s: s.encode(motion=depth_of(s)),
    ),
    "another condition to add to": (
        "VCCameraMotion", ["'add_to'", "'depth'"],
        lambda s: s.encode(motion=s.add("VCCameraMotion", add_to=depth_of(s))),
    ),
    "a motion of another length to add to": (
        "VCCameraMotion", ["'add_to'", "8 frames", "16"],
        lambda s: s.encode(motion=s.add("VCCameraMotion", add_to=s.add("VCCameraMotion", frames=8))),
    ),
    "a motion with a strength of its own to add to": (
        "VCCameraMotion", ["'add_to'", "strength 1", "got 0.5"],
        lambda s: s.encode(motion=s.add("VCCameraMotion", add_to=s.add("VCCameraMotion", strength=0.5))),
    ),
    "one condition from two encoders": (
        "STCEncode", ["'positive'", "'motion'", "another STC Encode"],
        lambda s: s.encode(
            positive=s.encode(motion=s.add("VCCameraMotion"))[0], motion=s.add("VCCameraMotion", zoom=2.0)
        ),
    ),
    "motion of one image": (
        "MotionVectorExtract", ["'video'", "single image"],
        lambda s: s.encode(
            motion=s.add("MotionVectorExtract", video=s.add("VCExampleClip", frames=1)[1], frame_rate=8.0)
        ),
    ),
    "a style without its image": (
        "StyleEmbed", ["'clip_vision'", "'image'"],
        lambda s: styled(s, clip_vision=s.loader[2]),
    ),
    "a style of nothing": ("StyleEmbed", ["'clip_vision_output'"], styled),
    "more style images than videos": (
        "VC3DUNetSampler", ["Style Embed", "16 images"],
        lambda s: styled(s, clip_vision=s.loader[2], image=s.add("VCExampleClip")[1]),
    ),
    "a schedule that ends before it starts": (
        "VCCameraMotion", ["'motion'", "0.8", "0.2"],
        lambda s: s.encode(motion=s.add("VCCameraMotion", start_percent=0.8, end_percent=0.2)),
    ),
    "a frame plan for images": (
        "MotionVectorExtract", ["'video'", "IMAGE", "frame_rate"],
        lambda s: s.encode(motion=s.add("MotionVectorExtract", video=s.add("VCExampleClip")[1], frame_rate=8.0)),
    ),
    "a video in memory that is too short": (
        "MotionVectorExtract", ["VIDEO", "too short", "4 frames", "16"],
        lambda s: s.encode(motion=s.add("MotionVectorExtract", video=s.add("VCExampleClip", frames=4), frame_rate=8.0)),
    ),
    "a video file that is too short": (
        "MotionVectorExtract", ["short.mp4", "too short", "3 frames", "16"],
        lambda s: (clip_files(s), motion_of(s, "short.mp4", frame_rate=8.0))[1],
    ),
    "a damaged video file": (
        "MotionVectorExtract", ["damaged.mp4"],
        lambda s: (clip_files(s), motion_of(s, "damaged.mp4", frame_rate=8.0))[1],
    ),
    "a video that is too wide for its motion": (
        "MotionVectorExtract", ["wide.mkv", "16400 by 64 pixels", "nominal_height"],
        lambda s: (wide_files(s), motion_of(s, "wide.mkv", frame_rate=8.0, frames=3))[1],
    ),
    "a video of too large frames": (
        "MotionVectorExtract", ["large.mov", "100 megapixels", "VC_MAX_MEGAPIXELS"],
        lambda s: (wide_files(s), motion_of(s, "large.mov", frame_rate=8.0, frames=2))[1],
    ),
    "tracks that are not JSON": (
        "VCMotionFromTracks", ["'tracks'", "JSON"],
        lambda s: s.encode(motion=s.add("VCMotionFromTracks", tracks="[{")),
    ),
    "depth maps in colours": (
        "DepthSequence", ["depth maps", "colours", "set 'input' to 'a video'"],
        lambda s: s.encode(depth=depth_of(s, 1)),
    ),
    "no depth network": (
        "DepthSequence", ["midas_v3_dpt_large.pth", "models/videocomposer"],
        lambda s: s.encode(depth=s.add("DepthSequence", video=s.add("VCExampleClip")[1])),
    ),
    "no PiDiNet": (
        "VCSketchSequence", ["table5_pidinet.pth", "models/videocomposer"],
        lambda s: s.encode(sketch=s.add("VCSketchSequence", video=s.add("VCExampleClip")[1], method="pidinet")),
    ),
    "a condition that does not fit into memory": (
        "STCEncode", ["'motion'", "1000 frames of 16384x16384", "GB", "smaller width, height or number of frames"],
        lambda s: s.encode(motion=s.add("VCCameraMotion"), width=16384, height=16384, frames=1000),
    ),
    "a size that latents do not have": ("STCEncode", ["12x64", "8"], lambda s: s.encode(width=12)),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WIRING)
def test_wrong_wiring(scene, wrong):
    node, words, wire = WIRING[wrong]
    scene.add("SaveLatent", samples=scene.sample(wire(scene), steps=1))
    assert_error(scene, node, *words)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (lambda s: {"latent": s.add("EmptyLatentImage", width=64, height=64)}, ["'latent'", "(1, 4, 8, 8)"]),
        (lambda s: {"latent": s.encode(frames=8)[2]}, ["'motion'", "16 frames", "8"]),
        (lambda s: {"context_length": 8, "context_overlap": 8, "latent": s.encode(frames=32)[2]}, ["8 frames", "7"]),
        (lambda s: {"scheduler": "ddim_released", "steps": 1000, "denoise": 0.5}, ["2000", "1000"]),
        (
            lambda s: {"scheduler": "ddim_released", "model": s.add("ModelSamplingDiscrete", sampling="lcm")},
            ["1000 noise levels", "has 50"],
        ),
    ],
    ids=[
        "a latent of an image",
        "a latent of another length",
        "windows that overlap completely",
        "too many steps",
        "released timesteps with another schedule",
    ],
)
def test_wrong_settings_of_the_sampler(scene, inputs, words):
    stc = scene.encode(motion=scene.add("VCCameraMotion"))
    scene.add("SaveLatent", samples=scene.sample(stc, **{"steps": 1, **inputs(scene)}))
    assert_error(scene, "VC3DUNetSampler", *words)


@pytest.mark.parametrize("kind", ["VC3DUNetSampler", "KSampler"])
def test_a_prompt_of_another_text_encoder(scene, kind):
    folder = scene.host.folder / "models" / "text_encoders"
    folder.mkdir(exist_ok=True)
    # ComfyUI treats an unknown text encoder as Stable Diffusion 1's, 768 wide, and ignores missing tensors.
    save_file({"text_model.final_layer_norm.weight": torch.ones(768)}, folder / "other.safetensors")
    clip = scene.add("CLIPLoader", clip_name="other.safetensors", type="stable_diffusion")
    prompt = scene.add("CLIPTextEncode", text="", clip=clip)
    stc = scene.encode(positive=prompt, negative=prompt)
    sample = {"VC3DUNetSampler": scene.sample, "KSampler": scene.stock_sample}[kind]
    scene.add("SaveLatent", samples=sample(stc, steps=1))
    assert_error(scene, kind, "768", "64", "CLIP")


@pytest.mark.parametrize("kind", ["VC3DUNetSampler", "KSampler"])
def test_the_error_if_memory_runs_out_while_sampling(scene, kind):
    sample = {"VC3DUNetSampler": scene.sample, "KSampler": scene.stock_sample}[kind]
    scene.add("SaveLatent", samples=sample(scene.encode(), steps=1, model=scene.add("OutOfMemory")))
    assert_error(scene, kind, "enough memory", "width and height on STC Encode", "context_length")


def _half(file):
    content = BUNDLED_FILE.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def _lacking_a_tensor(file):
    tensors = _bundled()
    del tensors["model.out.2.bias"]
    save_file(tensors, file, _metadata())


class _Code:
    """Create a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


FILES = {
    "truncated.safetensors": _half,
    "foreign.safetensors": lambda file: save_file({"a.weight": torch.zeros(3)}, file),
    "lacking.safetensors": _lacking_a_tensor,
    "noise.safetensors": lambda file: file.write_bytes(b"not a checkpoint" * 1000),
    "empty.pth": lambda file: file.write_bytes(b""),
    "code.pth": lambda file: torch.save({"a": _Code(str(file) + ".ran")}, file),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_a_checkpoint(scene, name):
    file = scene.host.checkpoints / name
    FILES[name](file)
    try:
        scene.graph.set(scene.loader, ckpt_name=name)
        scene.add("SaveLatent", samples=scene.sample(scene.encode(), steps=1))
        assert_error(scene, "VCCheckpointLoader", name)
        assert not file.with_name(f"{name}.ran").exists()
    finally:
        file.unlink()


USES = {
    "VAEDecode": lambda s, loader: s.add("VAEDecode", samples=s.encode()[2], vae=loader[3]),
    "VAEEncode": lambda s, loader: s.add("VAEEncode", pixels=s.add("VCExampleClip")[1], vae=loader[3]),
    "CLIPTextEncode": lambda s, loader: s.add("CLIPTextEncode", text="", clip=loader[1]),
    "CLIPVisionEncode": lambda s, loader: s.add(
        "CLIPVisionEncode", clip_vision=loader[2], image=s.add("VCExampleClip")[1]
    ),
    "StyleEmbed": lambda s, loader: styled(s, clip_vision=loader[2], image=s.add("VCExampleClip", frames=1)[1]),
}


@pytest.mark.parametrize("kind", USES)
def test_using_a_part_that_the_checkpoint_lacks_is_an_error(scene, kind):
    name = "network.safetensors"
    network = {key: tensor for key, tensor in _bundled().items() if key.startswith("model.")}
    save_file(network, scene.host.checkpoints / name, _metadata())
    used = USES[kind](scene, scene.add("VCCheckpointLoader", ckpt_name=name))
    if kind.startswith("VAE"):
        output = ("SaveImage", "images") if kind == "VAEDecode" else ("SaveLatent", "samples")
        scene.add(output[0], **{output[1]: used}, filename_prefix="x")
    else:
        scene.add("PreviewAny", source=used)
    assert_error(scene, kind, name, "Load")


def _bundled():
    with safe_open(BUNDLED_FILE, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _metadata():
    with safe_open(BUNDLED_FILE, "pt") as file:
        return file.metadata()


def assert_error(scene, node, *words):
    """Check that the graph fails at a node of this kind, with a one-line user message that contains these words."""
    error = scene.host.fails(scene.graph)
    message = error["exception_message"].strip()
    assert error["node_type"] == node, message
    assert error["exception_type"] in ("vc_core.UserError", "vc_core.MissingPart"), (
        f"{error['exception_type']}: {message}"
    )
    assert "\n" not in message and message.endswith(".")
    for word in words:
        assert word in message
