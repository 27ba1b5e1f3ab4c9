"""Motion made by hand, and pictures of motion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..vc_core.errors import UserError
from ..vc_core.extract.drawing import EASINGS
from ..vc_core.extract.motion.camera import CameraMove, camera_field, condition_from_field
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
    Drawn,
    Made,
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
TracksType = io.Custom("TRACKS")  # ComfyUI's own, of its versions that have it


def easing_input() -> io.Input:
    text = "How the movement sets in and ends: linear keeps its speed."
    return io.Combo.Input("easing", options=list(EASINGS), default="linear", tooltip=text)


def add_input() -> io.Input:
    text = (
        "Another motion, made for the same video, to which this one is added. Strength, start and end of the sum are "
        "set here."
    )
    return ConditionType.Input("add_to", optional=True, tooltip=text)


def checked(value: Made, socket: str, name: str) -> Made:
    """A VC_CONDITION of the kind that a socket takes. Raises `UserError` for another."""
    if value.condition.name != name:
        raise UserError(
            f"The socket '{socket}' holds the condition '{value.condition.name}' and takes '{name}': connect it to the "
            f"socket '{value.condition.name}', or connect another node here."
        )
    return value


def goal_of(model=None, frames=0, width=0, height=0, add_to=None, **_: float) -> Target:
    """The video that the inputs of a motion made by hand name."""
    return target(model, frames, width, height, add_to)


def by_hand(
    field: Callable[[Target], Tensor], strength: float, start_percent: float, end_percent: float, **inputs: Any
) -> io.NodeOutput:
    """The motion condition of a dense field `(1, 2, F, H, W)` for a video, in its pixels, and of `add_to`."""
    add_to = inputs.get("add_to")

    def draw(goal: Target) -> Drawn:
        tensor = condition_from_field(field(goal), goal.config.extraction, goal.size)
        if add_to is None or checked(add_to, "add_to", "motion").condition.strength == 0.0:
            return Drawn(tensor)
        given = add_to.for_video(goal)
        return Drawn(tensor + addend(given, tensor.shape[2], goal), rate=given.drawn.rate)

    return condition_output("motion", goal_of(**inputs), draw, strength, start_percent, end_percent)


def addend(value: Made, frames: int, goal: Target) -> Tensor:
    """A motion as it is added to another one of so many frames. Raises `UserError` where it does not go with that."""
    given = value.condition
    if (given.strength, given.start, given.end) != (1.0, 0.0, 1.0):
        raise UserError(
            f"The socket 'add_to' holds a motion of strength {given.strength:g} from {given.start:g} to "
            f"{given.end:g}, and a sum has one strength: leave those at 1, 0 and 1 there, and set them here."
        )
    if (given.tensor.shape[2], given.video) != (frames, goal.size):
        (height, width), (wanted_height, wanted_width) = given.video, goal.size
        raise UserError(
            f"The socket 'add_to' holds a motion of {given.tensor.shape[2]} frames at {width}x{height} and this one "
            f"has {frames} at {wanted_width}x{wanted_height}: make both for one length and size."
        )
    return goal.source().fitted("motion", given.tensor)  # that of a checkpoint that takes another size


def given_tracks(text: str, native: Any, canvas: tuple[int, int]) -> list[Track]:
    """The tracks of the text and of a TRACKS, in pixels of the canvas; the text may be empty beside the other."""
    if native is None:
        return parse_tracks(text, "The socket 'tracks'")
    drawn = [] if text.strip() in ("", "[]") else parse_tracks(text, "The socket 'tracks'")
    tracks = native_to_tracks(native, "The socket 'native_tracks'")
    starts = [track.points[track.visible][:1] for track in tracks]  # where each is first seen
    beyond = sum(bool((start < 0).any() or (start > start.new_tensor(canvas[::-1])).any()) for start in starts)
    say(
        f"Tracks: {len(drawn)} drawn and {len(tracks)} from the socket 'native_tracks'." if drawn else "",
        f"{beyond} of the {len(tracks)} tracks of 'native_tracks' begin outside the canvas of {canvas[1]}x{canvas[0]}: "
        "set canvas_width and canvas_height to the size that they were made for."
        if beyond
        else "",
    )
    return [*drawn, *tracks]


class VCMotionFromTracks(io.ComfyNode):
    """Motion along drawn tracks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCMotionFromTracks",
            display_name="Motion from Tracks (VideoComposer)",
            category=MOTION_CATEGORY,
            description="Motion along one or more drawn tracks, the points' JSON that spline editors give, or "
            "ComfyUI's own tracks.",
            search_aliases=["spline", "trajectory", "drag", "tracks", "videocomposer"],
            inputs=[
                model_input(),
                io.String.Input("tracks", multiline=True, default='[{"x": 128, "y": 256}, {"x": 384, "y": 256}]',
                                tooltip="JSON of points in pixels of the canvas, one track or a list of tracks: "
                                        '[{"x": 128, "y": 256}, {"x": 384, "y": 256}]'),
                *numbers(
                    ("canvas_width", 512, 0, 16384, None, "Width of the canvas that the tracks were drawn on; 0: that "
                     "of the connected image, or else the video's."),
                    ("canvas_height", 512, 0, 16384, None, "Height of the canvas that the tracks were drawn on; 0: "
                     "that of the connected image, or else the video's."),
                ),
                *size_inputs(),
                *schedule_inputs("the motion"),
                *numbers(
                    ("radius", 0.0, 0.0, 16384.0, 0.5, "How far around its point a track moves things, in pixels of "
                     "the canvas; 0: an eighth of the canvas, or no limit where a mask is connected."),
                ),
                easing_input(),
                *advanced(
                    io.Combo.Input("falloff", options=list(FALLOFFS), default="gaussian",
                                   tooltip="How the influence falls within the radius."),
                    io.Combo.Input("spacing", options=list(SPACINGS), default="index",
                                   tooltip="index: the points are equally long apart in time; length: the speed along "
                                           "the track is even."),
                ),
                io.Mask.Input("mask", optional=True,
                              tooltip="What moves, white, over the canvas: in the first frame, or in every frame."),
                add_input(),
                io.Image.Input("image", optional=True,
                               tooltip="The picture that the video begins with. After a run the editor shows it behind "
                                       "the tracks and takes its size for the canvas. The canvas is stretched over it, "
                                       "and it lies on the video as Single Image lays it."),
                TracksType.Input("native_tracks", optional=True,
                                 tooltip="ComfyUI's own tracks, in pixels of the canvas, to which the drawn ones are "
                                         "added. Set canvas_width and canvas_height to the size that they were made "
                                         "for; points that are not visible move nothing."),
            ],
            outputs=[
                *outputs("motion"),
                TracksType.Output("tracks_made", display_name="tracks",
                                  tooltip="All tracks as ComfyUI's own: a place for each frame, in pixels of the "
                                          "video; of a box it is the centre."),
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
            made = {"track_path": torch.zeros(goal.frames, 0, 2), "track_visibility": torch.zeros(goal.frames, 0)}
            return with_more(by_hand(None, **inputs), made, page)
        drawn_on = (canvas_height or ground[0], canvas_width or ground[1])
        paths = given_tracks(tracks, native, drawn_on)
        if image is not None:  # the canvas is stretched over it, as the editor does when it takes its size
            down, right = (side / drawn for side, drawn in zip(ground, drawn_on, strict=True))
            paths = [path.scaled(right, down) for path in paths]
            radius = radius * min(ground) / min(drawn_on)
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

        made = tracks_to_native(paths, goal.frames, goal.size, canvas(goal), spacing, easing)
        return with_more(by_hand(field, **inputs), made, page)


def with_more(output: io.NodeOutput, value: Any, page: dict[str, Any]) -> io.NodeOutput:
    """An output with a further value, and with more for the page."""
    return io.NodeOutput(*output.args, value, ui={**output.ui, **page})


class VCCameraMotion(io.ComfyNode):
    """Motion of a camera."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCCameraMotion",
            display_name="Camera Motion (VideoComposer)",
            category=MOTION_CATEGORY,
            description="The motion of a camera that pans, zooms and rolls, all at once if wanted.",
            search_aliases=["pan", "zoom", "roll", "camera", "videocomposer"],
            inputs=[
                model_input(),
                *numbers(
                    ("pan_right", 0.0, -10.0, 10.0, 0.01, "How far the camera looks to the right in the end, in "
                     "widths of the frame; the picture moves to the left."),
                    ("pan_down", 0.0, -10.0, 10.0, 0.01, "How far the camera looks down in the end, in heights of the "
                     "frame; the picture moves up."),
                    ("zoom", 1.0, 0.05, 20.0, 0.01, "How much larger things are in the end; below 1 the camera zooms "
                     "out."),
                    ("roll", 0.0, -3600.0, 3600.0, 0.5, "Degrees by which the camera turns clockwise; the picture "
                     "turns the other way."),
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
        return by_hand(lambda goal: camera_field(move, goal.frames, goal.size), **inputs)


class VCMotionPreview(io.ComfyNode):
    """A picture of a motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCMotionPreview",
            display_name="Motion Preview (VideoComposer)",
            category=MOTION_CATEGORY,
            description="A motion as arrows over the frames, or as colours: the hue is the direction.",
            search_aliases=["flow visualization", "arrows", "videocomposer"],
            inputs=[
                ConditionType.Input("motion", tooltip="The motion to look at."),
                io.Combo.Input("style", options=["arrows", "colours"], default="arrows",
                               tooltip="arrows: over the images, or over grey; colours: the colour wheel of optical "
                                       "flow."),
                io.Image.Input("images", optional=True,
                               tooltip="Frames to draw the arrows over, one or as many as the motion has."),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="One picture for each frame.")],
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
        return io.NodeOutput(pictures, ui=animation(pictures, motion.drawn.rate or motion.config.rate))


NODES: list[Any] = [VCMotionFromTracks, VCCameraMotion, VCMotionPreview]
