"""The settings of one composition.

One table of fields defines the options of `./vc compose`, the keys of its YAML files, the record inside an output file,
and the checks of all values.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, TypeAdapter

from ..conditions import CONDITIONS
from ..configuration import MORE, File, Problem, bare, checked, fitted, form, words
from ..diffusion.noise import NOISES
from ..diffusion.samplers import SAMPLERS
from ..errors import UserError, about, nearest, shown, spelled
from ..parsing import parse_json, parse_yaml
from .setting_types import (
    BUNDLED,
    EASINGS,
    MASKS,
    Answer,
    Canvas,
    Checkpoint,
    Conditions,
    Count,
    Device,
    Easing,
    Files,
    Fraction,
    Height,
    Keyframes,
    Loras,
    Method,
    Mode,
    Pair,
    Positive,
    Schedules,
    Seed,
    Size,
    Strengths,
    Text,
    TextsByFrame,
    UpTo64,
    White,
)

Label = Callable[[str], str]
"""Turns a field's name into the name of the setting in messages."""


def as_option(name: str) -> str:
    return "--" + name.replace("_", "-")


def as_key(name: str) -> str:
    return f"'{name}'"


def _describe(problem: Problem, label: Label = as_key, text: Any = None) -> str:
    """Say what is wrong with a value, and what was expected. `text` is the option's text on the command line."""
    (name,), hint = problem.where, bare(problem.hint)
    expected = f"Expected {words(problem.hint)}."
    if problem.message.startswith(("Expected", "Unknown")):
        expected = problem.message
    elif get_origin(hint) is Literal:
        expected += nearest(problem.value, get_args(hint))
    elif get_origin(hint) is dict and text is not None and problem.value is text:  # an option's
        expected = f"Expected {form(problem.hint)}, e.g. {_EXAMPLES[name]}."
    return f"{label(name)} is {spelled(problem.value if text is None else text) or 'empty'}. {expected}"


_EXAMPLES = {
    "strength": "motion=0.5",
    "schedule": "style=0:0.6",
    "text_at": '40="a blue square"',
    "lora": "my.safetensors=0.8",
    "keyframe": "last.png=-1",
}
"""Values of the options that are mappings."""


# --- The table ------------------------------------------------------------------------------------------------------


def _setting(help: str, default: Any = None) -> Any:
    options = {"default_factory": dict} if default == {} else {"default": default}
    return dataclasses.field(**options, metadata={"help": help})


@checked(_describe)
class Settings:
    """All inputs of one composition. None means: use the value of the checkpoint or of the source.

    Sizes are (height, width) in pixels, `start` is in seconds, `rate` and `fps` in frames per second. The fields' help
    texts describe the rest.

    Raises:
        UserError: a value has the wrong type or is out of range; the message names the field.
    """

    video: File | None = _setting("source of conditions: a video, or a folder of images")
    use: Conditions = _setting(f"conditions to extract from --video, separated by commas: {', '.join(CONDITIONS)}", ())
    start: Annotated[float, Field(ge=0)] = _setting("start time in the source, in seconds (default: 0)", 0.0)
    rate: Positive | None = _setting(
        "frames sampled per second of the source (default: the checkpoint's sampling_rate, usually 4; more for short "
        "clips)"
    )
    motion_mode: Mode = _setting(
        "motion vectors: released, as in training (default), or stream, those stored in the file", "released"
    )
    nominal_height: Height | None = _setting(
        "height to scale the source to before its motion is extracted, in pixels; 336 in training (default: no scaling)"
    )
    sketch_method: Method = _setting(
        "how to find lines: auto (default: the method used in training, if its files are installed), pidinet or edges",
        "auto",
    )
    depth_model: File | None = _setting(
        "depth network: midas_v3_dpt_large.pth, or the folder of another network (default: the MiDaS file in --models)"
    )
    depth_maps: File | None = _setting(
        "existing depth maps of the source: a video, an image, or a folder of images (default: use the depth network)"
    )
    depth_near: Literal["bright", "dark"] = _setting(
        "how near things look in --depth-maps: bright (default) or dark", "bright"
    )
    depth_scale: Positive | None = _setting(
        "depth of white in --depth-maps (of black with --depth-near dark), 0 to 10 (default: the maps' percentiles "
        "2 and 98 become the depths 0 and 2)"
    )
    mask: File | None = _setting("area to repaint: an image, a video, or a folder of images")
    mask_white: White = _setting("what to do with the white area of --mask: paint (default) or keep", "paint")
    mask_draw: Literal[(*MASKS, "any")] | None = _setting(
        f"draw a random mask instead, as in the original training: {', '.join(MASKS)} (of the frame), or any: "
        "one of these at random"
    )
    mask_seed: Seed = _setting("seed of the drawn mask (default: 0)", 0)
    models: Files = _setting("folders with the PiDiNet and MiDaS files (default: those that ./vc doctor lists)", ())

    tracks: File | None = _setting(
        "JSON file of motion tracks, as spline editors save it: [{x, y}, ...], or a list of them"
    )
    canvas: Canvas | None = _setting("size of the canvas of --tracks, in pixels (default: the video's size)")
    radius: Positive | None = _setting(
        "how far the motion of a track reaches, in pixels of the canvas (default: 1/8 of its shorter side)"
    )
    pan: Pair = _setting(
        "camera movement right and down over the video, in fractions of the frame, e.g. 0.2,0; to the left: "
        "--pan=-0.2,0 (default: no movement)",
        (0.0, 0.0),
    )
    zoom: Positive = _setting("zoom factor of the camera over the video (default: 1)", 1.0)
    roll: float = _setting("clockwise rotation of the camera over the video, in degrees (default: 0)", 0.0)
    easing: Easing = _setting(f"speed curve of tracks and camera: {', '.join(EASINGS)} (default: linear)", "linear")

    drag: bool = _setting(
        "cut and drag: start from --image, warped by the tracks and the camera movement (default: no)", False
    )
    drag_inside: Fraction = _setting(
        "fraction of the noise schedule that composes what --drag moves; lower follows the motion more closely "
        "(default: 0.5)",
        0.5,
    )
    drag_outside: Fraction = _setting("the same for the rest of the frame (default: 0.75)", 0.75)

    text: Text = _setting("prompt (default: empty)", "")
    text_at: TextsByFrame = _setting(
        'prompt at a later frame of a long video, e.g. 40="a blue square"; between these frames the text changes '
        "gradually; may be repeated",
        {},
    )
    negative: Text = _setting("negative prompt (default: empty)", "")
    vgen_prompts: bool = _setting("append VGen's phrases for TF-T2V and VideoLCM to both prompts (default: no)", False)
    image: File | None = _setting("first frame of the video (condition single_image)")
    sketch: File | None = _setting("drawing to follow (condition single_sketch)")
    sketch_lines: Literal["bright", "dark", "none"] | None = _setting(
        "lines of the drawing: dark or bright; none: it is a photo, and --sketch-method finds the lines (default: "
        "dark; none if --sketch-method is set for it)"
    )
    style: File | None = _setting("image that sets the style of the video")
    strength: Strengths = _setting("strength of a condition, e.g. motion=0.5 (default: 1); may be repeated", {})
    schedule: Schedules = _setting(
        "when a condition acts, in fractions of the noise schedule, e.g. style=0:0.6 (default: 0:1); may be repeated",
        {},
    )

    init: File | None = _setting("video to start from; --start and --rate apply to it")
    denoise: Annotated[float, Field(gt=0, le=1)] = _setting(
        "how much of --init to replace: near 0 almost nothing, 1 everything (default: 1)", 1.0
    )

    keyframe: Keyframes = _setting(
        "image that a frame shows: 0 is the first frame, -1 the last, e.g. last.png=-1; may be repeated", {}
    )
    extend: File | None = _setting(
        "video to continue: the output is the video, followed by new frames; --start and --rate apply to it"
    )
    keep: Count = _setting("frames at the end of --extend that --frames starts with (default: 4)", 4)

    upscale: Annotated[float, Field(gt=1, le=8)] | None = _setting(
        "enlarge the video this many times, e.g. 2, then denoise it again with its conditions, in tiles of the "
        "checkpoint's size (default: no second pass)"
    )
    upscale_denoise: Annotated[float, Field(gt=0, lt=1)] = _setting(
        "how much of the enlarged video to replace: near 0 almost nothing, near 1 almost everything (default: 0.4)", 0.4
    )
    upscale_model: File | None = _setting(
        "upscale model that enlarges the video, e.g. RealESRGAN_x2plus.pth; requires the package spandrel (default: "
        "bicubic interpolation)"
    )

    out: File | None = _setting(
        "output file: .mp4, .webm, .gif or .webp; or a folder for .png frames (required, if no settings file names it)"
    )
    sheet: File | None = _setting("also write a contact sheet to this .png file")
    frames: Count | None = _setting("number of frames (default: the checkpoint's)")
    size: Size | None = _setting("size in pixels, multiples of 8 (default: the checkpoint's)")
    fps: Annotated[float, Field(gt=0, le=1000)] | None = _setting(
        "frames per second of the output (default: as sampled from the source; without a source usually 8)"
    )
    scale: UpTo64 | None = _setting(
        "integer factor to enlarge the output by (default: until the shorter side has up to 256 pixels)"
    )
    batch_size: UpTo64 = _setting("number of videos to compose; their seeds count up from --seed (default: 1)", 1)

    seed: Seed = _setting("seed of the noise (default: 0)", 0)
    sampler: Literal[SAMPLERS] | None = _setting(
        f"sampler: {', '.join(SAMPLERS)} (default: dpmpp_2m; lcm with --few-steps)"
    )
    steps: Count | None = _setting("number of sampling steps (default: 20; 4 with --few-steps)")
    eta: Fraction = _setting("fresh noise per step, 0 to 1, for the ddim samplers (default: 0)", 0.0)
    guidance: float | None = _setting("guidance scale (default: the checkpoint's)")
    condition_guidance: float = _setting(
        "separate guidance scale for all conditions but text and style; 1 = off (default: 1)", 1.0
    )
    rescale: Fraction = _setting(
        "correction of over-saturation by strong guidance, 0 to 1 (default: 0; arXiv 2305.08891)", 0.0
    )
    window: Count | None = _setting("frames per window of a long video (default: the checkpoint's number of frames)")
    overlap: Annotated[int, Field(ge=0, le=MORE)] | None = _setting(
        "frames that neighbouring windows share (default: half a window)"
    )
    carry: Fraction = _setting(
        "strength of single_image and single_sketch after the first window, 0 to 1 (default: 0.5)", 0.5
    )
    noise: Literal[tuple(NOISES)] = _setting(
        f"noise to start from: {', '.join(NOISES)} (default: independent); shuffled, for long videos: every window has "
        "the noise of the first one in another order; warped: a tenth of the noise moves with the condition motion, "
        "for less flicker; warped_fully: all of it, for camera motion",
        "independent",
    )

    checkpoint: Checkpoint = _setting("checkpoint (default: the bundled one)")
    parts: Files = _setting("files of parts that the checkpoint lacks: autoencoder, text tower, image tower", ())
    lora: Loras = _setting(
        "LoRA for the network, and its strength (default: 1); may be repeated; 'bundled' makes the bundled checkpoint "
        "one for 4 steps",
        {},
    )
    few_steps: Answer | None = _setting(
        "whether the checkpoint was distilled for few steps without guidance; say yes for VideoLCM (default: as its "
        "file says)"
    )
    prediction: Literal["epsilon", "v_prediction"] | None = _setting(
        "what the checkpoint predicts: epsilon or v_prediction; set it if ./vc info shows the wrong one"
    )
    zero_terminal_snr: Answer | None = _setting(
        "whether the noise schedule ends in pure noise; set it if ./vc info shows the wrong answer"
    )
    device: Device = _setting("device to run on: auto, cpu, cuda, cuda:1, mps (default: auto)", "auto")
    dtype: Literal["auto", "fp32", "fp16", "bf16", "fp8"] = _setting(
        "dtype of the stored weights: auto, fp32, fp16, bf16, fp8 (default: auto)", "auto"
    )
    compute: Literal["auto", "fp32", "fp16", "bf16"] = _setting(
        "dtype of the computation: auto, fp32, fp16, bf16 (default: auto)", "auto"
    )
    offload: bool = _setting("keep weights in main memory, on the device only while in use (default: no)", False)
    compile: bool = _setting("compile the network first: a slow start, then faster steps (default: no)", False)
    chunk: Count | None = _setting("frames to encode or decode at a time (default: 16; fewer if they are large)")
    tile: Annotated[int, Field(ge=64, le=MORE)] | None = _setting(
        "side of the tiles to encode or decode at a time, in pixels (default: no tiles)"
    )

    # --- Reading and writing ---

    @staticmethod
    def from_mapping(values: Mapping[str, Any], folder: Path | None = None) -> "Settings":
        """Read settings by name, as a file stores them; relative paths are under `folder`. Raises `UserError`."""
        if not isinstance(values, Mapping):
            advice = " For a list of settings, use --batch instead of --from." if isinstance(values, list) else ""
            raise UserError(f"Expected lines such as 'steps: 20', got {shown(values)}.{advice}")
        settings = Settings(**{name: value for name, value in by_name(values).items() if value is not None})
        return settings if folder is None else settings.with_paths(lambda path: folder / path)

    @staticmethod
    def from_yaml(path: str | Path) -> "Settings":
        """Read settings from a `.yaml` or `.json`; its paths are relative to the file. Raises `UserError`."""
        with about(path):
            return Settings.from_mapping(read_yaml(path), Path(path).parent)

    def to_mapping(self) -> dict[str, Any]:
        """Return the settings by name, as JSON and YAML values, without the settings of `LATER` at their default.

        `from_mapping` returns the same settings again.
        """
        plain = TypeAdapter(Settings).dump_python(self, mode="json")
        values = {name: value for name, value in plain.items() if name not in LATER or value != DEFAULTS[name]}
        return {**values, "checkpoint": plain["checkpoint"] or BUNDLED}

    def with_options(self, texts: Mapping[str, Any]) -> "Settings":
        """Return these settings, changed by options, whose `texts` are those of the command line. Raises `UserError`.

        An option also resets the setting that it excludes: `--mask-draw` replaces the mask file of a YAML.
        """
        changed = _displaced(texts)
        for name, text in texts.items():
            describe = partial(_describe, label=as_option, text=text)
            value = fitted(Settings, name, _from_text(name, text), describe)
            changed[name] = {**getattr(self, name), **value} if name in MERGED else value
        return dataclasses.replace(self, **changed)

    # --- Files ---

    def with_paths(self, change: Callable[[Path], Path]) -> "Settings":
        """Return these settings with a function applied to every path."""
        changed: dict[str, Any] = {name: tuple(map(change, getattr(self, name))) for name in FILES}
        for name in ("lora", "keyframe"):
            changed[name] = {change(path): value for path, value in getattr(self, name).items()}
        changed |= {name: change(value) for name, value in vars(self).items() if isinstance(value, Path)}
        return dataclasses.replace(self, **changed)

    def inputs(self) -> dict[str, tuple[Path, ...]]:
        """Return the input files by setting, without the bundled checkpoint."""
        values = {name: getattr(self, name) for name in INPUTS}
        return {n: tuple(v) if isinstance(v, tuple | dict) else (v,) for n, v in values.items() if v}

    @property
    def moves_by_hand(self) -> bool:
        """Whether tracks or a camera movement define the motion."""
        return any(getattr(self, name) != DEFAULTS[name] for name in MOVES)

    @property
    def lines(self) -> str:
        """The lines of the single sketch's image: `bright`, `dark`, or `none` if the sketch method must find them."""
        method_is_for_it = self.sketch_method != "auto" and "sketch" not in self.use
        return self.sketch_lines or ("none" if method_is_for_it else "dark")

    @property
    def reads_sequence(self) -> bool:
        """Whether the source's frames are read as a sequence, not only the first one."""
        temporal = any(CONDITIONS[name].kind == "temporal" for name in self.use)
        return temporal or self.init is not None or self.extend is not None


MERGED = ("strength", "schedule", "text_at")
"""Settings whose options change single entries of a file's mapping."""

LATER = (
    "vgen_prompts", "lora", "few_steps", "prediction", "zero_terminal_snr",
    "upscale", "upscale_denoise", "upscale_model", "text_at", "noise",
    "drag", "drag_inside", "drag_outside", "keyframe", "extend", "keep",
)  # fmt: skip
"""Settings that version 0.1 does not have. It refuses a record that contains their names."""

MOVES = ("tracks", "pan", "zoom", "roll")
"""Settings of hand-made motion."""

REQUIRES = (
    ("text_at", "text"),
    ("canvas", "tracks"),
    ("radius", "tracks"),
    ("sketch_lines", "sketch"),
    ("depth_near", "depth_maps"),
    ("depth_scale", "depth_maps"),
    ("mask_white", "mask"),
    ("mask_seed", "mask_draw"),
    ("drag", "image"),
    ("drag_inside", "drag"),
    ("drag_outside", "drag"),
    ("keep", "extend"),
    ("upscale_denoise", "upscale"),
    ("upscale_model", "upscale"),
)
"""Pairs of settings: the first has no effect without the second."""

EXCLUSIVE = (
    ("depth_maps", "depth_model"),
    ("mask", "mask_draw"),
    *(("init", name) for name in ("keyframe", "extend", "drag")),
    *(("drag", name) for name in ("keyframe", "extend")),
    ("extend", "video"),
)
"""Pairs of settings that exclude each other."""

FILES = [name for name, hint in Settings.__annotations__.items() if hint is Files]
"""Settings that are lists of paths."""

_PATHS = [name for name, hint in Settings.__annotations__.items() if bare(hint) is Path]
INPUTS = (*(name for name in _PATHS if name not in ("out", "sheet")), "parts", "lora", "keyframe")
"""Settings that name files which must exist."""

AFFECTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("motion_mode", "nominal_height"), ("motion",)),
    "sketch_method": ("sketch", "single_sketch"),
    **dict.fromkeys(("depth_model", "depth_maps", "depth_near", "depth_scale"), ("depth",)),
    **dict.fromkeys(("mask", "mask_white", "mask_draw", "mask_seed"), ("mask",)),
}
"""Settings of certain conditions -> the conditions that they change."""

SETTINGS: dict[str, str] = {f.name: f.metadata["help"] for f in dataclasses.fields(Settings)}
"""The help text of each setting."""

_FIRST = {
    "video": "conditions from a video",
    "tracks": "hand-made motion",
    "text": "text and images",
    "init": "video to video",
    "keyframe": "frames that are kept",
    "upscale": "second pass",
    "out": "output",
    "seed": "sampling",
    "checkpoint": "checkpoint and machine",
}
_BY_SUBJECT = zip(SETTINGS, accumulate(map(_FIRST.get, SETTINGS), lambda last, own: own or last), strict=True)
_USUAL = ("text", "image", "video", "use", "checkpoint", "out")
TITLES = dict.fromkeys(_USUAL, "what most runs need")
TITLES |= {name: title for name, title in _BY_SUBJECT if name not in TITLES}
"""The title of each setting's group in the help, in the help's order."""

DEFAULTS = vars(Settings())


def by_name(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the values of a file by setting: keys are spelled with - or _. Raises `UserError` for an unknown key, or
    one that occurs in both spellings."""
    named: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_") if isinstance(key, str) else key
        if name not in SETTINGS:
            raise UserError(
                f"There is no setting {shown(key)}.{nearest(name, SETTINGS)} See ./vc compose --help for all settings."
            )
        if name in named:
            raise UserError(f"The setting '{name}' occurs twice, with - and with _. Remove one of the two.")
        named[name] = value
    return named


def _from_text(name: str, text: Any) -> Any:
    """Convert an option's text, or list of texts, to a value as in a file; return it unchanged if that fails."""
    kind = bare(Settings.__annotations__[name])
    try:
        if kind in (int, float):
            return kind(text)
        if name == "pan":
            return [float(part) for part in text.split(",")]
        if name in ("strength", "schedule"):
            pairs = [item.partition("=")[::2] for item in text]
            split = {name: [float(part) for part in value.split(":")] for name, value in pairs}
            return split if name == "schedule" else {name: factor for name, (factor,) in split.items()}
    except (ValueError, OverflowError):
        pass
    return text


def _displaced(options: Collection[str]) -> dict[str, Any]:
    """Return the defaults of the settings that these options exclude, and of the settings that require those."""
    rivals = [order for pair in EXCLUSIVE for order in (pair, pair[::-1])]
    excluded = {rival for name, rival in rivals if name in options}
    excluded |= {name for name, other in REQUIRES if other in excluded}
    return {name: DEFAULTS[name] for name in excluded - {*options}}


# --- Files of settings ----------------------------------------------------------------------------------------------


def read_yaml(path: str | Path) -> Any:
    """Return the content of a `.yaml` or `.json`. Raises `UserError` if it does not exist or cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"The settings file {path} does not exist. Check the path.")
    try:
        text = path.read_text(encoding="utf-8")
        return parse_json(text) if path.suffix.lower() == ".json" else parse_yaml(text)
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read as settings ({error}). Check the quotes, brackets and spaces there. Expected lines "
            "such as 'steps: 20'."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from error
