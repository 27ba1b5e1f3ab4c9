"""Conditions out of what users have: a video, images, masks, other packs' depth maps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from torch import Tensor

from ..vc_core.conditions import drawing_size
from ..vc_core.errors import UserError
from ..vc_core.extract.depth import RELEASED_FILE as MIDAS
from ..vc_core.extract.depth import depth
from ..vc_core.extract.depth_maps import depth_from_maps
from ..vc_core.extract.mask import mask_of, masked_video
from ..vc_core.extract.motion import read_motion
from ..vc_core.extract.pictures import flow_picture
from ..vc_core.extract.refit import refit
from ..vc_core.extract.sketch import RELEASED_FILES as PIDINET
from ..vc_core.extract.sketch import as_sketch, sketch
from ..vc_core.video import read_frames, resize_crop
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
    plan_inputs,
    schedule_inputs,
    schema,
    size_inputs,
    target,
    video_input,
)

CONDITIONS_CATEGORY = f"{CATEGORY}/conditions"


def outputs(name: str) -> list[io.Output]:
    return [
        ConditionType.Output("condition", display_name=name, tooltip=f"For the socket '{name}' of STCEncode."),
        io.Image.Output("preview", display_name="preview", tooltip="What the network sees, one image for each frame."),
    ]


def frames_of(clip: Footage, size: tuple[int, int]) -> Tensor:
    """The plan's frames `(1, 3, F, h, w)` in [0, 1], scaled to cover a size (h, w) and centre-cropped."""
    if isinstance(clip.source, Tensor):
        return resize_crop(clip.source[:, :3].expand(-1, 3, -1, -1, -1), size)
    return read_frames(clip.source, clip.plan, size)


def annotator_device() -> torch.device:
    return comfy.model_management.get_torch_device()


class MotionVectorExtract(io.ComfyNode):
    """Motion vectors of a video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MotionVectorExtract",
            display_name="Motion Vectors (VideoComposer)",
            category=CONDITIONS_CATEGORY,
            description="The motion of a video, as block vectors of video compression, for a VideoComposer to follow.",
            search_aliases=["motion transfer", "optical flow", "motion vectors", "videocomposer"],
            inputs=[
                model_input(),
                video_input("The video whose motion is to be followed."),
                *plan_inputs(),
                *size_inputs(),
                *schedule_inputs("the motion"),
                *advanced(
                    io.Combo.Input("mode", options=["released", "stream"], default="released",
                                   tooltip="released: the frames are encoded anew, as what the network was trained on; "
                                           "stream: the file's own vectors at its own frame rate, where it has any."),
                    io.Int.Input("nominal_height", default=0, min=0, max=16384,
                                 tooltip="Scale the source to this height before its motion is taken; 0: as it is. "
                                         "The released network was trained on clips about 336 pixels high."),
                ),
            ],
            outputs=outputs("motion"),
        )  # fmt: skip

    @classmethod
    def execute(cls, video, start_time, frame_rate, frames, width, height, strength, start_percent, end_percent, mode,
                nominal_height, model=None) -> io.NodeOutput:  # fmt: skip
        def draw(goal: Target) -> Drawn:
            kind, taken = goal.config.extraction, goal
            if isinstance(video, Tensor):  # fewer images than frames would stand still between: they are spread later
                taken = replace(goal, frames=min(goal.frames, len(video)))
            clip = footage(video, taken, start_time, frame_rate)
            if clip.count < 2 <= goal.frames:
                raise UserError(
                    "The socket 'video' holds one image, which does not move: connect a VIDEO or more images."
                )
            motion = read_motion(clip.source, clip.plan, drawing_size("motion", goal.size), kind.motion_layout,
                                 kind.motion_unit, mode, nominal_height or None, progress_bar())  # fmt: skip
            field = refit("motion", motion.field, goal.size, goal.frames, kind, goal.size)
            slower = taken.frames < goal.frames
            notes = (
                clip.note,
                f"The motion of {taken.frames} images was spread over {goal.frames} frames." if slower else "",
                motion.note if mode == "stream" or motion.repeated else "",
            )
            return Drawn(field, flow_picture(field), notes, clip.rate)

        goal = target(model, frames, width, height)
        return condition_output("motion", goal, draw, strength, start_percent, end_percent)


class DepthSequence(io.ComfyNode):
    """Depth of a video, or depth maps from elsewhere."""

    INPUTS = {  # noqa: RUF012
        "a video": None,
        "depth maps, near is bright": "bright",
        "depth maps, near is dark": "dark",
    }

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="DepthSequence",
            display_name="Depth Sequence (VideoComposer)",
            category=CONDITIONS_CATEGORY,
            description="The depth of every frame of a video, by MiDaS, DPT or Depth Anything, or from depth maps that "
            "other nodes made.",
            search_aliases=["depth", "midas", "depth anything", "videocomposer"],
            inputs=[
                model_input(),
                video_input("The video whose depth is to be followed, or its depth maps."),
                *plan_inputs(),
                *size_inputs(),
                *schedule_inputs("the depth"),
                io.Combo.Input("input", options=list(cls.INPUTS), default="a video",
                               tooltip="What the socket 'video' holds: a video, whose depth a network sees, or depth "
                                       "maps that are there already."),
                io.Combo.Input("depth_model", options=["auto", *folders.depth_models()], default="auto",
                               tooltip="The depth network for a video, from the model folder 'videocomposer'; auto: "
                                       "the released MiDaS. Without effect on depth maps."),
                *advanced(
                    io.Float.Input("depth_scale", default=0.0, min=0.0, max=10.0, step=0.01,
                                   tooltip="The depth that the nearest value of depth maps stands for, in MiDaS's "
                                           "inverse depth / 20; 0: from the maps' percentiles."),
                ),
            ],
            outputs=outputs("depth"),
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, depth_model: str | None = None, **inputs: Any) -> Any:
        """A network that was put there or replaced is used."""
        return folders.fingerprint(MIDAS if depth_model in (None, "auto") else depth_model)

    @classmethod
    def execute(cls, video, start_time, frame_rate, frames, width, height, strength, start_percent, end_percent, input,
                depth_model, depth_scale, model=None) -> io.NodeOutput:  # fmt: skip
        def draw(goal: Target) -> Drawn:
            clip = footage(video, goal, start_time, frame_rate)
            pictures, near = frames_of(clip, drawing_size("depth", goal.size)), cls.INPUTS[input]
            if near is not None:
                tensor, notes = depth_from_maps(pictures, near, depth_scale or None), (clip.note,)
            else:
                path = None if depth_model == "auto" else folders.model_path(depth_model)
                tensor, which = depth(
                    pictures, path, folders.folders(), device=annotator_device(), progress=progress_bar()
                )
                notes = clip.note, f"Depth by {which}."
            tensor = goal.fitted("depth", tensor)
            return Drawn(tensor, tensor / tensor.amax().clamp(min=1e-6), notes, clip.rate)

        goal = target(model, frames, width, height)
        return condition_output("depth", goal, draw, strength, start_percent, end_percent)


SKETCHES = {
    "auto": None,
    "pidinet": None,
    "edges": None,
    "is a sketch, bright lines": "bright",
    "is a sketch, dark lines": "dark",
}


def sketch_input(default: str) -> io.Input:
    return io.Combo.Input(
        "method", options=list(SKETCHES), default=default,
        tooltip="How the lines are found: pidinet, as released, where its two files are in the model folder "
                "'videocomposer'; edges, which needs none; auto: as the checkpoint was trained, where possible. Or the "
                "input is a sketch already.",
    )  # fmt: skip


def drawn(name: str, pictures: Tensor, method: str, goal: Target) -> tuple[Tensor, str]:
    """The sketch `(1, 1, F, h, w)` of pictures `(1, 3, F, H, W)` at `drawing_size`, and a sentence about how."""
    if SKETCHES[method] is not None:
        return goal.fitted(name, as_sketch(pictures, SKETCHES[method])), ""
    if method == "auto" and goal.config.extraction.sketch == "edges":
        method = "edges"
    tensor, which = sketch(pictures, method, folders.folders(), device=annotator_device(), progress=progress_bar())
    note = "" if which == method else f"Sketch by {which}{'' if which == 'pidinet' else ', without PiDiNet'}."
    return goal.fitted(name, tensor), note


class VCSketchSequence(io.ComfyNode):
    """Sketches of a video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCSketchSequence",
            display_name="Sketch Sequence (VideoComposer)",
            category=CONDITIONS_CATEGORY,
            description="A sketch of every frame of a video, or sketches that are there already.",
            search_aliases=["sketch", "pidinet", "edges", "lineart", "videocomposer"],
            inputs=[
                model_input(),
                video_input("The video whose outlines are to be followed, or its sketches."),
                *plan_inputs(),
                *size_inputs(),
                *schedule_inputs("the sketch"),
                sketch_input("auto"),
            ],
            outputs=outputs("sketch"),
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> Any:
        """PiDiNet's files are used once they are put there."""
        return folders.fingerprint(*PIDINET)

    @classmethod
    def execute(cls, video, start_time, frame_rate, frames, width, height, strength, start_percent, end_percent, method,
                model=None) -> io.NodeOutput:  # fmt: skip
        def draw(goal: Target) -> Drawn:
            clip = footage(video, goal, start_time, frame_rate)
            tensor, note = drawn("sketch", frames_of(clip, drawing_size("sketch", goal.size)), method, goal)
            return Drawn(tensor, tensor, (clip.note, note), clip.rate)

        goal = target(model, frames, width, height)
        return condition_output("sketch", goal, draw, strength, start_percent, end_percent)


class VCMaskSequence(io.ComfyNode):
    """A video with an area to be painted anew."""

    MEANINGS = {"area to paint": "paint", "area to keep": "keep"}  # noqa: RUF012

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCMaskSequence",
            display_name="Mask Sequence (VideoComposer)",
            category=CONDITIONS_CATEGORY,
            description="A video of which an area, which may move, is to be painted anew.",
            search_aliases=["inpaint", "mask", "video inpainting", "videocomposer"],
            inputs=[
                model_input(),
                video_input("The video of which a part is kept."),
                io.Mask.Input("mask", tooltip="One mask for all frames, or one for each frame of the video."),
                *plan_inputs(),
                *size_inputs(),
                *schedule_inputs("the mask"),
                io.Combo.Input("white", options=list(cls.MEANINGS), default="area to paint",
                               tooltip="What the mask's white is. ComfyUI's masks are white where to paint."),
            ],
            outputs=outputs("mask"),
        )  # fmt: skip

    @classmethod
    def execute(cls, video, mask, start_time, frame_rate, frames, width, height, strength, start_percent, end_percent,
                white, model=None) -> io.NodeOutput:  # fmt: skip
        def draw(goal: Target) -> Drawn:
            clip, size = footage(video, goal, start_time, frame_rate), drawing_size("mask", goal.size)
            area = channels_first(mask)
            area, note = (area, "") if area.shape[2] == 1 else clip.along(area)
            found = mask_of(area, cls.MEANINGS[white], goal.frames, size)
            tensor = masked_video(frames_of(clip, size), found.keep, goal.at("mask"))
            return Drawn(tensor, tensor[:, :3] / 2 + 0.5, (clip.note, note and f"Mask: {note}", found.note), clip.rate)

        goal = target(model, frames, width, height)
        return condition_output("mask", goal, draw, strength, start_percent, end_percent)


def one_image(image: Tensor, size: tuple[int, int]) -> tuple[Tensor, str]:
    """The first of a batch of images as `(1, 3, 1, h, w)`, and a sentence where there are more."""
    note = f"The first of {len(image)} images is used." if len(image) > 1 else ""
    return resize_crop(channels_first(image[:1])[:, :3].expand(-1, 3, -1, -1, -1), size), note


class VCSingleImage(io.ComfyNode):
    """The image that a video begins with."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCSingleImage",
            display_name="Single Image (VideoComposer)",
            category=CONDITIONS_CATEGORY,
            description="An image that the video begins with.",
            search_aliases=["image to video", "i2v", "first frame", "videocomposer"],
            inputs=[
                model_input(),
                io.Image.Input("image", tooltip="The first frame of the video to be made."),
                *size_inputs()[1:],
                *schedule_inputs("the image"),
            ],
            outputs=outputs("single_image"),
        )

    @classmethod
    def execute(cls, image, width, height, strength, start_percent, end_percent, model=None) -> io.NodeOutput:
        def draw(goal: Target) -> Drawn:
            picture, note = one_image(image, drawing_size("single_image", goal.size))
            tensor = goal.fitted("single_image", picture)
            return Drawn(tensor, tensor, (note,))

        goal = target(model, 0, width, height)
        return condition_output("single_image", goal, draw, strength, start_percent, end_percent)


class VCSingleSketch(io.ComfyNode):
    """The sketch of a video's scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCSingleSketch",
            display_name="Single Sketch (VideoComposer)",
            category=CONDITIONS_CATEGORY,
            description="One sketch for a whole video, drawn by hand or found in an image.",
            search_aliases=["sketch to video", "scribble", "videocomposer"],
            inputs=[
                model_input(),
                io.Image.Input("image", tooltip="A sketch, or an image whose outlines are found."),
                *size_inputs()[1:],
                *schedule_inputs("the sketch"),
                sketch_input("is a sketch, dark lines"),
            ],
            outputs=outputs("single_sketch"),
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> Any:
        """PiDiNet's files are used once they are put there."""
        return folders.fingerprint(*PIDINET)

    @classmethod
    def execute(cls, image, width, height, strength, start_percent, end_percent, method, model=None) -> io.NodeOutput:
        def draw(goal: Target) -> Drawn:
            picture, which = one_image(image, drawing_size("single_sketch", goal.size))
            tensor, how = drawn("single_sketch", picture, method, goal)
            return Drawn(tensor, tensor, (which, how))

        goal = target(model, 0, width, height)
        return condition_output("single_sketch", goal, draw, strength, start_percent, end_percent)


NODES: list[Any] = [
    MotionVectorExtract,
    DepthSequence,
    VCSketchSequence,
    VCMaskSequence,
    VCSingleImage,
    VCSingleSketch,
]
