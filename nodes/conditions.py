"""Conditions out of what users have: a video, images, masks, other packs' depth maps."""

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
    Drawn,
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
        ConditionType.Output("condition", display_name=name, tooltip=f"For the socket '{name}' of STCEncode."),
        io.Image.Output("preview", display_name="preview", tooltip="What the network sees, one image for each frame."),
    ]


def extracted(name: str, goal: Target, clip: Footage, note: str = "", **options: Any) -> Drawn:
    """A condition by the core's extractor; `options` are those of `vc_core.extract.Options`."""
    device = comfy.model_management.get_torch_device()
    chosen = Options(models=folders.folders(), device=device, **options)
    made = extract_condition(name, clip.source, chosen, progress_bar())
    tensor = refit(name, made.tensor, goal.size, goal.frames, goal.config.extraction, goal.size)
    return Drawn(tensor, (clip.note, note, _told(made)), clip.rate)


def _told(made: Extracted) -> str:
    how = made.how
    if "model" in how:
        return f"Depth by {how['model']}."
    if "method" in how:
        lacks = "" if how["method"] == "pidinet" else ", without PiDiNet"
        return made.note and f"Sketch by {how['method']}{lacks}."
    return "" if "maps" in how else made.note


class ConditionNode(io.ComfyNode):
    """A node that makes the condition of a row of the table.

    Attributes:
        NAME: of the row; the other texts are the schema's.
        WHAT: what has the strength and the schedule.
        SOCKET: the tooltip of the video, or of the image of a spatial condition.
    """

    NAME, TITLE, WHAT, SOCKET, TEXT = "", "", "", "", ""
    ALIASES: Sequence[str] = ()

    @classmethod
    def define_schema(cls) -> io.Schema:
        if TABLE[cls.NAME].kind == "temporal":
            text = f"{cls.SOCKET} A VIDEO is read at the frame plan below; an IMAGE batch is spread over the frames."
            sockets = [io.MultiType.Input("video", [io.Video, io.Image], tooltip=text), *cls.beside(), *plan_inputs()]
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
    def beside(cls) -> list[io.Input]:
        """Sockets beside the video."""
        return []

    @classmethod
    def own(cls) -> list[io.Input]:
        """Inputs that tell how the condition is made."""
        return []

    @classmethod
    def execute(
        cls, width, height, strength, start_percent, end_percent, frames=0, model=None, **inputs
    ) -> io.NodeOutput:
        draw, goal = partial(cls.draw, **inputs), target(model, frames, width, height)
        return condition_output(cls.NAME, goal, draw, strength, start_percent, end_percent)

    @classmethod
    def draw(cls, goal: Target, start_time=0.0, frame_rate=0.0, video=None, image=None) -> Drawn:
        """The condition for a video; `inputs` are the sockets and those of `own`."""
        clip = footage(video, goal, start_time, frame_rate) if image is None else still(image, goal)
        return extracted(cls.NAME, goal, clip)


class MotionVectorExtract(ConditionNode):
    """Motion vectors of a video."""

    NAME, TITLE, WHAT = "motion", "Motion Vectors", "the motion"
    SOCKET = "The video whose motion is to be followed."
    TEXT = "The motion of a video, as block vectors of video compression, for a VideoComposer to follow."
    ALIASES = ("motion transfer", "optical flow", "motion vectors")

    @classmethod
    def own(cls) -> list[io.Input]:
        modes = (
            "released: the frames are encoded anew, as what the network was trained on; stream: the file's own vectors "
            "at its own frame rate, where it has any."
        )
        height = (
            "Scale the source to this height before its motion is taken; 0: as it is. The released network was trained "
            "on clips about 336 pixels high."
        )
        mode = io.Combo.Input("mode", options=["released", "stream"], default="released", tooltip=modes)
        return advanced(mode, *numbers(("nominal_height", 0, 0, 16384, None, height)))

    @classmethod
    def draw(cls, goal: Target, video, start_time, frame_rate, mode, nominal_height) -> Drawn:
        taken = goal
        if isinstance(video, Tensor):  # fewer images than frames would stand still between: they are spread later
            taken = replace(goal, frames=min(goal.frames, len(video)))
        clip, note = footage(video, taken, start_time, frame_rate), ""
        if clip.count < 2 <= goal.frames:
            raise UserError("The socket 'video' holds one image, which does not move: connect a VIDEO or more images.")
        if taken.frames < goal.frames:
            note = f"The motion of {taken.frames} images was spread over {goal.frames} frames."
        return extracted("motion", goal, clip, note, motion_mode=mode, nominal_height=nominal_height or None)


class DepthSequence(ConditionNode):
    """Depth of a video, or depth maps from elsewhere."""

    NAME, TITLE, WHAT = "depth", "Depth Sequence", "the depth"
    SOCKET = "The video whose depth is to be followed, or its depth maps."
    TEXT = (
        "The depth of every frame of a video, by MiDaS, DPT or Depth Anything, or from depth maps that other nodes "
        "made."
    )
    ALIASES = ("depth", "midas", "depth anything")
    INPUTS = {  # noqa: RUF012
        "a video": None,
        "depth maps, near is bright": "bright",
        "depth maps, near is dark": "dark",
    }

    @classmethod
    def own(cls) -> list[io.Input]:
        kinds = (
            "What the socket 'video' holds: a video, whose depth a network sees, or depth maps that are there already."
        )
        models = (
            "The depth network for a video, from the model folder 'videocomposer'; auto: the released MiDaS. Without "
            "effect on depth maps."
        )
        scale = (
            "The depth that the nearest value of depth maps stands for, in MiDaS's inverse depth / 20; 0: from the "
            "maps' percentiles."
        )
        return [
            io.Combo.Input("input", options=list(cls.INPUTS), default="a video", tooltip=kinds),
            io.Combo.Input("depth_model", options=["auto", *folders.depth_models()], default="auto", tooltip=models),
            *advanced(*numbers(("depth_scale", 0.0, 0.0, 10.0, 0.01, scale))),
        ]

    @classmethod
    def fingerprint_inputs(cls, depth_model: str | None = None, **inputs: Any) -> Any:
        """A network that was put there or replaced is used."""
        return folders.fingerprint(MIDAS if depth_model in (None, "auto") else depth_model)

    @classmethod
    def draw(cls, goal: Target, video, start_time, frame_rate, input, depth_model, depth_scale) -> Drawn:
        clip, near = footage(video, goal, start_time, frame_rate), cls.INPUTS[input]
        if near is None:
            path = None if depth_model == "auto" else folders.model_path(depth_model)
            return extracted("depth", goal, clip, depth_model=path)
        maps = clip.source.frames("depth")
        return extracted("depth", goal, clip, depth_maps=maps, depth_near=near, depth_scale=depth_scale or None)


class VCSketchSequence(ConditionNode):
    """Sketches of a video."""

    NAME, TITLE, WHAT = "sketch", "Sketch Sequence", "the sketch"
    SOCKET = "The video whose outlines are to be followed, or its sketches."
    TEXT = "A sketch of every frame of a video, or sketches that are there already."
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
            "How the lines are found: pidinet, as released, where its two files are in the model folder "
            "'videocomposer'; edges, which needs none; auto: as the checkpoint was trained, where possible. Or the "
            "input is a sketch already."
        )
        return [io.Combo.Input("method", options=list(cls.METHODS), default=cls.METHOD, tooltip=text)]

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> Any:
        """PiDiNet's files are used once they are put there."""
        return folders.fingerprint(*PIDINET)

    @classmethod
    def draw(cls, goal: Target, method, start_time=0.0, frame_rate=0.0, video=None, image=None) -> Drawn:
        clip = footage(video, goal, start_time, frame_rate) if image is None else still(image, goal)
        return extracted(cls.NAME, goal, clip, **cls.METHODS[method])


class VCMaskSequence(ConditionNode):
    """A video with an area to be painted anew."""

    NAME, TITLE, WHAT = "mask", "Mask Sequence", "the mask"
    SOCKET = "The video of which a part is kept."
    TEXT = "A video of which an area, which may move, is to be painted anew."
    ALIASES = ("inpaint", "mask", "video inpainting")
    MEANINGS = {"area to paint": "paint", "area to keep": "keep"}  # noqa: RUF012

    @classmethod
    def beside(cls) -> list[io.Input]:
        return [io.Mask.Input("mask", tooltip="One mask for all frames, or one for each frame of the video.")]

    @classmethod
    def own(cls) -> list[io.Input]:
        text = "What the mask's white is. ComfyUI's masks are white where to paint."
        return [io.Combo.Input("white", options=list(cls.MEANINGS), default="area to paint", tooltip=text)]

    @classmethod
    def draw(cls, goal: Target, video, mask, start_time, frame_rate, white) -> Drawn:
        clip, area = footage(video, goal, start_time, frame_rate), channels_first(mask)
        area, note = (area, "") if area.shape[2] == 1 else clip.along(area)
        return extracted("mask", goal, clip, note and f"Mask: {note}", mask=area, mask_white=cls.MEANINGS[white])


class VCSingleImage(ConditionNode):
    """The image that a video begins with."""

    NAME, TITLE, WHAT = "single_image", "Single Image", "the image"
    SOCKET = "The first frame of the video to be made."
    TEXT = "An image that the video begins with."
    ALIASES = ("image to video", "i2v", "first frame")


class VCSingleSketch(VCSketchSequence):
    """The sketch of a video's scene."""

    NAME, TITLE = "single_sketch", "Single Sketch"
    SOCKET = "A sketch, or an image whose outlines are found."
    TEXT = "One sketch for a whole video, drawn by hand or found in an image."
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
for _name in [name for name in TABLE if name not in {node.NAME for node in NODES}]:  # rows without a node of their own
    _title = _name.replace("_", " ").title()
    _texts = {"TITLE": _title, "WHAT": f"the {_title.lower()}", "SOCKET": "What it is taken from."}
    _texts["TEXT"] = f"The {_title.lower()} of what is connected: {TABLE[_name].unit}."
    NODES.append(type(f"VC{_title.replace(' ', '')}", (ConditionNode,), {"NAME": _name, **_texts}))
