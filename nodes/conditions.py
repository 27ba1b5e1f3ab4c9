"""Nodes that compute conditions from a video, images, masks or depth maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.model_management
from comfy_api.latest import io
from torch import Tensor

from ..vc_core.conditions import CONDITIONS as TABLE
from ..vc_core.errors import UserError
from ..vc_core.extract.depth.networks import RELEASED_FILE as MIDAS
from ..vc_core.extract.refit import refit
from ..vc_core.extract.sketch.methods import RELEASED_FILES as PIDINET
from ..vc_core.extract.sources import Extracted, Options, extract_condition
from .host import folders
from .host.running import progress_bar
from .inputs import (
    CATEGORY,
    ConditionType,
    DrawResult,
    Footage,
    Target,
    advanced,
    channels_first,
    condition_output,
    footage,
    model_input,
    numbers,
    plan_inputs,
    schedule_inputs,
    schema,
    size_inputs,
    still,
    target,
)


def outputs(name: str) -> list[io.Output]:
    return [
        ConditionType.Output("condition", display_name=name, tooltip=f"Connect to '{name}' of STC Encode."),
        io.Image.Output("preview", display_name="preview", tooltip="What the network sees, one image per frame."),
    ]


def extracted(name: str, goal: Target, clip: Footage, note: str = "", **options: Any) -> DrawResult:
    """Compute a condition with the core's extractor; `options` are fields of `vc_core.extract.sources.Options`."""
    device = comfy.model_management.get_torch_device()
    chosen = Options(models=folders.folders(), device=device, **options)
    result = extract_condition(name, clip.source, chosen, progress_bar())
    tensor = refit(name, result.tensor, goal.size, goal.frames, goal.config.extraction, goal.size)
    return DrawResult(tensor, (clip.note, note, _method_note(result)), clip.rate)


def _method_note(result: Extracted) -> str:
    how = result.how
    if "model" in how:
        return f"Depth network: {how['model']}."
    if "method" in how:
        reason = "" if how["method"] == "pidinet" else " (PiDiNet's files were not found)"
        return result.note and f"Sketch method: {how['method']}{reason}."
    return "" if "maps" in how else result.note


class ConditionNode(io.ComfyNode):
    """A node that computes the condition of one row of the table.

    Attributes:
        NAME: the row's name.
        TITLE, TEXT, ALIASES: display name, description and search aliases in the schema.
        WHAT: what strength and schedule refer to, in their tooltips.
        SOCKET: tooltip of the socket 'video' of a temporal condition, or 'image' of a spatial one.
    """

    NAME, TITLE, WHAT, SOCKET, TEXT = "", "", "", "", ""
    ALIASES: Sequence[str] = ()

    @classmethod
    def define_schema(cls) -> io.Schema:
        if TABLE[cls.NAME].kind == "temporal":
            text = f"{cls.SOCKET} start_time and frame_rate choose a VIDEO's frames; an IMAGE batch is spread evenly."
            sockets = [
                io.MultiType.Input("video", [io.Video, io.Image], tooltip=text),
                *cls.more_sockets(),
                *plan_inputs(),
            ]
            sizes = size_inputs()
        else:
            sockets, sizes = [io.Image.Input("image", tooltip=cls.SOCKET)], size_inputs()[1:]
        return schema(
            node_id=cls.__name__,
            display_name=f"{cls.TITLE} (VideoComposer)",
            category=f"{CATEGORY}/conditions",
            description=cls.TEXT,
            search_aliases=[*cls.ALIASES, "videocomposer"],
            inputs=[model_input(), *sockets, *sizes, *schedule_inputs(cls.WHAT), *cls.own()],
            outputs=outputs(cls.NAME),
        )

    @classmethod
    def more_sockets(cls) -> list[io.Input]:
        """Return the sockets after the video."""
        return []

    @classmethod
    def own(cls) -> list[io.Input]:
        """Return the inputs that say how the condition is computed."""
        return []

    @classmethod
    def execute(
        cls, width, height, strength, start_percent, end_percent, frames=0, model=None, **inputs
    ) -> io.NodeOutput:
        draw, goal = partial(cls.draw, **inputs), target(model, frames, width, height)
        return condition_output(cls.NAME, goal, draw, strength, start_percent, end_percent)

    @classmethod
    def draw(cls, goal: Target, start_time=0.0, frame_rate=0.0, video=None, image=None) -> DrawResult:
        """Compute the condition for a video. Subclasses also receive the inputs of `more_sockets` and `own`."""
        clip = footage(video, goal, start_time, frame_rate) if image is None else still(image, goal)
        return extracted(cls.NAME, goal, clip)


class MotionVectorExtract(ConditionNode):
    """Motion vectors of a video."""

    NAME, TITLE, WHAT = "motion", "Motion Vectors", "the motion"
    SOCKET = "The video whose motion the result should follow."
    TEXT = "Extracts the motion of a video, as the motion vectors of a video encoder."
    ALIASES = ("motion transfer", "optical flow", "motion vectors")

    @classmethod
    def own(cls) -> list[io.Input]:
        modes = (
            "released: re-encode the frames and use the encoder's vectors, as in the network's training. stream: use "
            "the motion vectors stored in the file, if it has any."
        )
        height = (
            "Height in pixels to which the source is scaled before its motion is read; 0 = no scaling. If the motion "
            "of a large file is too strong, try 336, the released network's training height."
        )
        mode = io.Combo.Input("mode", options=["released", "stream"], default="released", tooltip=modes)
        return advanced(mode, *numbers(("nominal_height", 0, 0, 16384, None, height)))

    @classmethod
    def draw(cls, goal: Target, video, start_time, frame_rate, mode, nominal_height) -> DrawResult:
        source = goal
        if isinstance(video, Tensor):  # repeated images would have no motion between them: `refit` spreads the motion
            _check_moves(len(video), goal)
            source = replace(goal, frames=min(goal.frames, len(video)))
        clip, note = footage(video, source, start_time, frame_rate), ""
        _check_moves(clip.count, goal)
        if source.frames < goal.frames:
            note = f"The motion of {source.frames} images was spread over {goal.frames} frames."
        return extracted("motion", goal, clip, note, motion_mode=mode, nominal_height=nominal_height or None)


def _check_moves(count: int, goal: Target) -> None:
    if count < 2 <= goal.frames:
        raise UserError("'video' is a single image, which has no motion. Connect a VIDEO or at least two images.")


class DepthSequence(ConditionNode):
    """Depth of a video, or depth maps from other nodes."""

    NAME, TITLE, WHAT = "depth", "Depth Sequence", "the depth"
    SOCKET = "The video whose depth the result should follow, or its depth maps."
    TEXT = (
        "Estimates the depth of every frame of a video with MiDaS, DPT or Depth Anything, or uses depth maps from "
        "other nodes."
    )
    ALIASES = ("depth", "midas", "depth anything")
    INPUTS = {  # noqa: RUF012
        "a video": None,
        "depth maps, near is bright": "bright",
        "depth maps, near is dark": "dark",
    }

    @classmethod
    def own(cls) -> list[io.Input]:
        kinds = "What is connected to 'video': a video, whose depth a network estimates, or finished depth maps."
        models = (
            "The network that estimates depth, from the model folder 'videocomposer'; not used for depth maps. auto = "
            "MiDaS, as in the authors' code."
        )
        scale = (
            "Depth that white stands for (black, if near is dark), in MiDaS's inverse depth / 20. 0 = automatic, from "
            "the maps' percentiles."
        )
        return [
            io.Combo.Input("input", options=list(cls.INPUTS), default="a video", tooltip=kinds),
            io.Combo.Input("depth_model", options=["auto", *folders.depth_models()], default="auto", tooltip=models),
            *advanced(*numbers(("depth_scale", 0.0, 0.0, 10.0, 0.01, scale))),
        ]

    @classmethod
    def fingerprint_inputs(cls, depth_model: str | None = None, **inputs: Any) -> Any:
        """Run again when the depth network's file is added or replaced."""
        return folders.fingerprint(MIDAS if depth_model in (None, "auto") else depth_model)

    @classmethod
    def draw(cls, goal: Target, video, start_time, frame_rate, input, depth_model, depth_scale) -> DrawResult:
        clip, near = footage(video, goal, start_time, frame_rate), cls.INPUTS[input]
        if near is None:
            path = None if depth_model == "auto" else folders.model_path(depth_model)
            return extracted("depth", goal, clip, depth_model=path)
        maps = clip.source.frames("depth")
        try:
            return extracted("depth", goal, clip, depth_maps=maps, depth_near=near, depth_scale=depth_scale or None)
        except UserError as error:
            raise UserError(f"{error} If 'video' is a normal video, set 'input' to 'a video'.") from error


class VCSketchSequence(ConditionNode):
    """Sketches of a video."""

    NAME, TITLE, WHAT = "sketch", "Sketch Sequence", "the sketch"
    SOCKET = "The video whose outlines the result should follow, or its sketches."
    TEXT = "Draws a sketch of every frame of a video, or uses finished sketches."
    ALIASES = ("sketch", "pidinet", "edges", "lineart")
    METHOD = "auto"
    METHODS = {  # noqa: RUF012
        **{name: {"sketch_method": name} for name in ("auto", "pidinet", "edges")},
        "is a sketch, bright lines": {"drawing": "bright"},
        "is a sketch, dark lines": {"drawing": "dark"},
    }

    @classmethod
    def own(cls) -> list[io.Input]:
        text = (
            "How to draw the lines: pidinet (requires two files) or edges. auto = as the checkpoint was trained, if "
            "possible; is a sketch = the input is already a sketch."
        )
        return [io.Combo.Input("method", options=list(cls.METHODS), default=cls.METHOD, tooltip=text)]

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> Any:
        """Run again when PiDiNet's files are added or replaced."""
        return folders.fingerprint(*PIDINET)

    @classmethod
    def draw(cls, goal: Target, method, start_time=0.0, frame_rate=0.0, video=None, image=None) -> DrawResult:
        clip = footage(video, goal, start_time, frame_rate) if image is None else still(image, goal)
        return extracted(cls.NAME, goal, clip, **cls.METHODS[method])


class VCMaskSequence(ConditionNode):
    """A video with an area to repaint."""

    NAME, TITLE, WHAT = "mask", "Mask Sequence", "the mask"
    SOCKET = "The video to keep outside the mask."
    TEXT = "Keeps a video but repaints a masked area, which may move."
    ALIASES = ("inpaint", "mask", "video inpainting")
    MEANINGS = {"area to paint": "paint", "area to keep": "keep"}  # noqa: RUF012

    @classmethod
    def more_sockets(cls) -> list[io.Input]:
        return [io.Mask.Input("mask", tooltip="The area: one mask for all frames, or one for each frame of the video.")]

    @classmethod
    def own(cls) -> list[io.Input]:
        text = "What white means in the mask. In ComfyUI's mask editor, white is the area to repaint."
        return [io.Combo.Input("white", options=list(cls.MEANINGS), default="area to paint", tooltip=text)]

    @classmethod
    def draw(cls, goal: Target, video, mask, start_time, frame_rate, white) -> DrawResult:
        clip, area = footage(video, goal, start_time, frame_rate), channels_first(mask)
        area, note = (area, "") if area.shape[2] == 1 else clip.along(area)
        return extracted("mask", goal, clip, note and f"Mask: {note}", mask=area, mask_white=cls.MEANINGS[white])


class VCSingleImage(ConditionNode):
    """An image as the first frame of a video."""

    NAME, TITLE, WHAT = "single_image", "Single Image", "the image"
    SOCKET = "The first frame of the video. Only the first image of a batch is used."
    TEXT = "Starts the video with an image."
    ALIASES = ("image to video", "i2v", "first frame")


class VCSingleSketch(VCSketchSequence):
    """One sketch for an entire video."""

    NAME, TITLE = "single_sketch", "Single Sketch"
    SOCKET = "A sketch, or an image whose outlines to draw."
    TEXT = "Uses one sketch for the entire video: drawn by hand, or computed from an image."
    ALIASES = ("sketch to video", "scribble")
    METHOD = "is a sketch, dark lines"


NODES: list[Any] = [
    MotionVectorExtract,
    DepthSequence,
    VCSketchSequence,
    VCMaskSequence,
    VCSingleImage,
    VCSingleSketch,
]
for _name in [name for name in TABLE if name not in {node.NAME for node in NODES}]:  # rows that have no class above
    _title = _name.replace("_", " ").title()
    _texts = {"TITLE": _title, "WHAT": f"the {_title.lower()}", "SOCKET": "The input that it is computed from."}
    _texts["TEXT"] = f"Computes the {_title.lower()} of the input: {TABLE[_name].unit}."
    NODES.append(type(f"VC{_title.replace(' ', '')}", (ConditionNode,), {"NAME": _name, **_texts}))
