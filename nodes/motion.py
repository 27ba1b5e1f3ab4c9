"""Nodes for motion from tracks or a camera move, and a preview of motion."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..vc_core.errors import UserError
from ..vc_core.extract.drawing import EASINGS
from ..vc_core.extract.motion.camera import CameraMove, camera_field, condition_from_field
from ..vc_core.extract.motion.drag import Paths, camera_paths, tracks_paths
from ..vc_core.extract.motion.tracks import (
    FALLOFFS,
    SPACINGS,
    Track,
    native_to_tracks,
    parse_tracks,
    tracks_field,
    tracks_to_native,
)
from ..vc_core.extract.pictures import arrows_picture, flow_picture
from ..vc_core.video import resize_crop
from .conditions import outputs
from .host.pictures import animation, temporary
from .host.running import say
from .inputs import (
    CATEGORY,
    ConditionType,
    ConditionValue,
    DrawResult,
    Target,
    advanced,
    channels_first,
    channels_last,
    condition_output,
    model_input,
    numbers,
    schedule_inputs,
    schema,
    size_inputs,
    spread,
    target,
)

MOTION_CATEGORY = f"{CATEGORY}/motion"
TracksType = io.Custom("TRACKS")  # ComfyUI's own type; older versions do not have it


def easing_input() -> io.Input:
    text = "How the motion starts and ends. linear = constant speed."
    return io.Combo.Input("easing", options=list(EASINGS), default="linear", tooltip=text)


def add_input() -> io.Input:
    text = (
        "Another motion for the same video, to which this one is added. Set strength, start_percent and "
        "end_percent of the sum on this node."
    )
    return ConditionType.Input("add_to", optional=True, tooltip=text)


def checked(value: ConditionValue, socket: str, name: str) -> ConditionValue:
    """Return a VC_CONDITION if it is the condition `name`. Raises `UserError` otherwise."""
    if value.condition.name != name:
        raise UserError(
            f"Expected a '{name}' condition at the socket '{socket}', got '{value.condition.name}'. Connect a node "
            f"that outputs '{name}'."
        )
    return value


def goal_of(model=None, frames=0, width=0, height=0, add_to=None, **_: float) -> Target:
    """Return the video that a motion node's inputs describe."""
    return target(model, frames, width, height, add_to)


def motion_output(
    field: Callable[[Target], Tensor],
    paths: Callable[[Target, Tensor], Tensor],
    strength: float,
    start_percent: float,
    end_percent: float,
    **inputs: Any,
) -> io.NodeOutput:
    """Return the outputs of a motion node.

    Args:
        field: returns a dense field `(1, 2, F, H, W)` for a video, in its pixels. The motion `add_to` is added to it.
        paths: returns where points move in a video, see `vc_core.extract.motion.drag.Paths`.
    """
    add_to = inputs.get("add_to")

    def draw(goal: Target) -> DrawResult:
        tensor = condition_from_field(field(goal), goal.config.extraction, goal.size)
        if add_to is None or checked(add_to, "add_to", "motion").condition.strength == 0.0:
            return DrawResult(tensor, paths=partial(paths, goal))
        other = add_to.for_video(goal)
        both = other.result.paths and partial(_added, partial(paths, goal), other.result.paths)
        return DrawResult(tensor + addend(other, tensor.shape[2], goal), rate=other.result.rate, paths=both)

    return condition_output("motion", goal_of(**inputs), draw, strength, start_percent, end_percent)


def _added(first: Paths, second: Paths, points: Tensor) -> Tensor:
    return first(points) + second(points) - points


def addend(value: ConditionValue, frames: int, goal: Target) -> Tensor:
    """Return a motion in the format in which it is added to one of `frames` frames.

    Raises:
        UserError: it has its own strength or schedule, or another length or size.
    """
    other = value.condition
    if (other.strength, other.start, other.end) != (1.0, 0.0, 1.0):
        raise UserError(
            f"Expected a motion with strength 1, start_percent 0 and end_percent 1 at the socket 'add_to', got "
            f"{other.strength:g}, {other.start:g} and {other.end:g}. Set these values on this node only: they apply to "
            "the sum."
        )
    if (other.tensor.shape[2], other.video) != (frames, goal.size):
        (height, width), (own_height, own_width) = other.video, goal.size
        raise UserError(
            f"Expected a motion of {frames} frames at {own_width}x{own_height} at the socket 'add_to', got "
            f"{other.tensor.shape[2]} frames at {width}x{height}. Set the same frames, width and height on both nodes."
        )
    return goal.source().fitted("motion", other.tensor)  # a checkpoint may expect another size


def all_tracks(text: str, native: Any, canvas: tuple[int, int]) -> list[Track]:
    """Return the tracks of the text and of a TRACKS, in canvas pixels. The text may be empty if there is a TRACKS."""
    if native is None:
        return parse_tracks(text, "The socket 'tracks'")
    from_text = [] if text.strip() in ("", "[]") else parse_tracks(text, "The socket 'tracks'")
    tracks = native_to_tracks(native, "The socket 'native_tracks'")
    starts = [track.points[track.visible][:1] for track in tracks]  # the first visible point of each
    outside = sum(bool((start < 0).any() or (start > start.new_tensor(canvas[::-1])).any()) for start in starts)
    say(
        f"Tracks: {len(from_text)} drawn, {len(tracks)} from the socket 'native_tracks'." if from_text else "",
        f"{outside} of {len(tracks)} tracks from 'native_tracks' start outside the {canvas[1]}x{canvas[0]} canvas. Set "
        "canvas_width and canvas_height to the size that these tracks were created for."
        if outside
        else "",
    )
    return [*from_text, *tracks]


class VCMotionFromTracks(io.ComfyNode):
    """Compute motion along tracks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCMotionFromTracks",
            display_name="Motion from Tracks (VideoComposer)",
            category=MOTION_CATEGORY,
            description="Moves things along tracks: drawn on the node, as JSON from a spline editor, or as ComfyUI's "
            "TRACKS.",
            search_aliases=["spline", "trajectory", "drag", "tracks", "videocomposer"],
            inputs=[
                model_input(),
                io.String.Input("tracks", multiline=True, default='[{"x": 128, "y": 256}, {"x": 384, "y": 256}]',
                                tooltip="Points as JSON, in canvas pixels: one track or a list of tracks. Example: "
                                        '[{"x": 128, "y": 256}, {"x": 384, "y": 256}]'),
                *numbers(
                    ("canvas_width", 512, 0, 16384, None, "Width in pixels of the canvas that the tracks were drawn "
                     "on. 0 = as the connected image, otherwise as the video."),
                    ("canvas_height", 512, 0, 16384, None, "Height in pixels of the canvas that the tracks were drawn "
                     "on. 0 = as the connected image, otherwise as the video."),
                ),
                *size_inputs(),
                *schedule_inputs("the motion"),
                *numbers(
                    ("radius", 0.0, 0.0, 16384.0, 0.5, "Radius in canvas pixels of the area that moves with a track's "
                     "point. 0 = automatic: an eighth of the canvas' shorter side, or unlimited if a mask is "
                     "connected."),
                ),
                easing_input(),
                *advanced(
                    io.Combo.Input("falloff", options=list(FALLOFFS), default="gaussian",
                                   tooltip="How the motion weakens with distance. gaussian = gradually, hard = full "
                                           "strength up to the radius."),
                    io.Combo.Input("spacing", options=list(SPACINGS), default="index",
                                   tooltip="index: equal time between points, so distant points mean fast motion. "
                                           "length: constant speed along the track."),
                ),
                io.Mask.Input("mask", optional=True,
                              tooltip="White marks what moves, on the canvas: one mask for the first frame, or one for "
                                      "each frame."),
                add_input(),
                io.Image.Input("image", optional=True,
                               tooltip="The first frame of the video. After a run, the editor shows it behind the "
                                       "tracks and gives the canvas its size."),
                TracksType.Input("native_tracks", optional=True,
                                 tooltip="Tracks from other ComfyUI nodes, in canvas pixels, in addition to the drawn "
                                         "tracks. Set canvas_width and canvas_height to the size that they were "
                                         "created for."),
            ],
            outputs=[
                *outputs("motion"),
                TracksType.Output("tracks_made", display_name="tracks",
                                  tooltip="All tracks as ComfyUI's TRACKS: one position per frame, in pixels of the "
                                          "video. A box gives its centre."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, tracks, canvas_width, canvas_height, radius, easing, falloff, spacing, mask=None, image=None, **inputs
    ) -> io.NodeOutput:
        native, goal = inputs.pop("native_tracks", None), goal_of(**inputs)
        page = {"videocomposer_size": [goal.size[::-1]]}
        ground = goal.size
        if image is not None:
            page["videocomposer_background"] = [temporary(image[0])]
            ground = tuple(image.shape[1:3])
        if inputs["strength"] == 0.0:
            empty = {"track_path": torch.zeros(goal.frames, 0, 2), "track_visibility": torch.zeros(goal.frames, 0)}
            return with_more(motion_output(None, None, **inputs), empty, page)
        size = (canvas_height or ground[0], canvas_width or ground[1])
        paths = all_tracks(tracks, native, size)
        if image is not None:  # stretch the canvas over the image, as the editor does
            down, right = (new / old for new, old in zip(ground, size, strict=True))
            paths = [path.scaled(right, down) for path in paths]
            radius = radius * min(ground) / min(size)
            canvas_height, canvas_width = ground
        region = None if mask is None else channels_first(mask)
        moving = region is not None and region.shape[2] > 1
        if moving:
            note = spread(region, goal.frames)[1]
            say(note and f"Mask: {note}")

        def canvas(goal: Target) -> tuple[int, int]:
            return canvas_height or goal.size[0], canvas_width or goal.size[1]

        def field(goal: Target) -> Tensor:
            along = spread(region, goal.frames)[0] if moving else region
            return tracks_field(
                paths, goal.frames, goal.size, canvas(goal), radius or None, along, falloff, spacing, easing
            )

        def moved(goal: Target, points: Tensor) -> Tensor:
            return tracks_paths(
                paths, goal.frames, goal.size, points, canvas(goal), radius or None, region, spacing, easing
            )

        native = tracks_to_native(paths, goal.frames, goal.size, canvas(goal), spacing, easing)
        return with_more(motion_output(field, moved, **inputs), native, page)


def with_more(output: io.NodeOutput, value: Any, page: dict[str, Any]) -> io.NodeOutput:
    """Return an output with one more value and more data for the page."""
    return io.NodeOutput(*output.args, value, ui={**output.ui, **page})


class VCCameraMotion(io.ComfyNode):
    """Compute the motion of a camera move."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCCameraMotion",
            display_name="Camera Motion (VideoComposer)",
            category=MOTION_CATEGORY,
            description="Creates the motion of a camera that pans, zooms and rolls, in any combination.",
            search_aliases=["pan", "zoom", "roll", "camera", "videocomposer"],
            inputs=[
                model_input(),
                *numbers(
                    ("pan_right", 0.0, -10.0, 10.0, 0.01, "Total pan to the right, in frame widths. The content "
                     "moves left. Negative = pan left."),
                    ("pan_down", 0.0, -10.0, 10.0, 0.01, "Total pan down, in frame heights. The content moves up. "
                     "Negative = pan up."),
                    ("zoom", 1.0, 0.05, 20.0, 0.01, "Total magnification: 2 = twice as large at the end. Below 1 = "
                     "zoom out."),
                    ("roll", 0.0, -3600.0, 3600.0, 0.5, "Total clockwise rotation of the camera in degrees. The "
                     "content rotates the other way."),
                ),
                easing_input(),
                *size_inputs(),
                *schedule_inputs("the motion"),
                add_input(),
            ],
            outputs=outputs("motion"),
        )  # fmt: skip

    @classmethod
    def execute(cls, pan_right, pan_down, zoom, roll, easing, **inputs) -> io.NodeOutput:
        move = CameraMove((pan_right, pan_down), zoom, roll, easing)
        return motion_output(
            lambda goal: camera_field(move, goal.frames, goal.size),
            lambda goal, points: camera_paths(move, goal.frames, goal.size, points),
            **inputs,
        )


class VCMotionPreview(io.ComfyNode):
    """Draw a motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCMotionPreview",
            display_name="Motion Preview (VideoComposer)",
            category=MOTION_CATEGORY,
            description="Shows a motion as arrows on the frames, or as colours: the hue is the direction.",
            search_aliases=["flow visualization", "arrows", "videocomposer"],
            inputs=[
                ConditionType.Input("motion", tooltip="The motion to show."),
                io.Combo.Input("style", options=["arrows", "colours"], default="arrows",
                               tooltip="arrows: on the images, or on grey. colours: the colour wheel of optical flow."),
                io.Image.Input("images", optional=True,
                               tooltip="Background of the arrows: one image, or one for each frame of the motion."),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="One image per frame.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, motion, style, images=None) -> io.NodeOutput:
        condition, ground = checked(motion, "motion", "motion").condition, None
        if style == "arrows" and images is not None:
            ground = channels_first(images)[:, :3]
            ground = ground if ground.shape[2] == 1 else spread(ground, condition.tensor.shape[2])[0]
            ground = resize_crop(ground, condition.video)
        field = condition.tensor
        pictures = channels_last(flow_picture(field) if style == "colours" else arrows_picture(field, ground))
        return io.NodeOutput(pictures, ui=animation(pictures, motion.result.rate or motion.config.rate))


NODES: list[Any] = [VCMotionFromTracks, VCCameraMotion, VCMotionPreview]
