"""The settings of one composition. One table of fields makes the options of `./vc compose`, the keys of its YAML files,
the record inside a produced file, and every check of a value."""

import dataclasses
import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, TypeAdapter

from ..conditions import CONDITIONS
from ..configuration import MORE, File, Problem, Spoken, bare, checked, fitted, form, words
from ..diffusion.samplers import SAMPLERS
from ..errors import UserError, about, shown, spelled
from ..extract import drawing
from ..extract.mask import POLARITIES, RANDOM_MASKS
from ..extract.motion.from_video import MODES
from ..extract.sketch.methods import METHODS
from ..parsing import parse_json, parse_yaml

BUNDLED = "bundled"
"""What stands for the checkpoint that comes with this package."""

EASINGS, WHITES, MASKS = tuple(drawing.EASINGS), tuple(POLARITIES), tuple(RANDOM_MASKS)

APPLIED = (*CONDITIONS, "style")
"""What has a strength and a schedule."""

Label = Callable[[str], str]
"""What a message calls a setting, from its field's name."""


def as_option(name: str) -> str:
    return "--" + name.replace("_", "-")


def as_key(name: str) -> str:
    return f"'{name}'"


def nearest(word: Any, known: Iterable[str]) -> str:
    """A question that names what was probably meant; empty where nothing is near."""
    close = difflib.get_close_matches(spelled(word), list(known), n=1)
    return f" (is '{close[0]}' meant?)" if close else ""


def _tell(problem: Problem, label: Label = as_key, text: Any = None) -> str:
    """How a value that is not possible is told; `text`: of the option that it comes from."""
    (name,), hint = problem.where, bare(problem.hint)
    expected = f"expected {words(problem.hint)}"
    if problem.said.startswith(("expected", "unknown")):
        expected = problem.said
    elif get_origin(hint) is Literal:
        expected += nearest(problem.value, get_args(hint))
    elif get_origin(hint) is dict and text is not None and problem.value is text:  # an option's
        expected = f"expected {form(problem.hint)}"
    return f"{label(name)} {spelled(problem.value if text is None else text)} is not possible: {expected}."


# --- Types ------------------------------------------------------------------------------------------------------------


def _known(names: Iterable[Any], known: Iterable[str]) -> None:
    known = tuple(known)
    for name in names:
        if name not in known:
            raise ValueError(
                f"unknown condition '{spelled(name)}', expected some of {', '.join(known)}{nearest(name, known)}"
            )


def _conditions(value: Any) -> Any:
    names = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if not isinstance(names, list | tuple):
        return value
    _known(names, CONDITIONS)
    if len({*names}) != len(names):
        raise ValueError("expected each condition once")
    return tuple(names)


def _by_condition(value: Any) -> Any:
    if isinstance(value, Mapping):
        _known(value, APPLIED)
    return value


def _by_file(value: Any) -> Any:
    """Strengths by file, of FILE or FILE=STRENGTH or a list of these."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return value
    strengths = {}
    for text in texts:
        path, _, factor = text.rpartition("=")
        try:
            strengths[path or text] = float(factor) if path else 1.0
        except ValueError:  # a name with = in it
            strengths[text] = 1.0
    if len({*map(Path, strengths)}) < len(texts):
        raise ValueError("expected each file once")
    return strengths


def _sides(value: Any) -> Any:
    """(height, width) of WIDTHxHEIGHT. A tuple was read already; a file's list would leave the order open."""
    if not isinstance(value, str):
        return value
    width, _, height = value.lower().partition("x")
    return int(height), int(width)


def _eights(size: tuple[int, int]) -> tuple[int, int]:
    if any(side % 8 for side in size):
        raise ValueError("expected multiples of 8, for instance 256x256")
    return size


def _span(span: tuple[float, float]) -> tuple[float, float]:
    if not 0.0 <= span[0] <= span[1] <= 1.0:
        raise ValueError("expected 0 <= start <= end <= 1")
    return span


def _device(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("expected text: put it in quotes")
    name, _, index = value.partition(":")
    if name not in ("auto", "cpu", "cuda", "mps") or (":" in value and not (name == "cuda" and index.isdecimal())):
        raise ValueError
    return value


Text = Annotated[str, Spoken("text: put it in quotes", "TEXT")]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Count = Annotated[int, Field(ge=1, le=MORE)]
UpTo64 = Annotated[int, Field(ge=1, le=64)]
Height = Annotated[int, Field(ge=16, le=8192)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Mode, Method, Easing, White = Literal[MODES], Literal[METHODS], Literal[EASINGS], Literal[WHITES]
Files = Annotated[
    tuple[File, ...],
    Field(strict=False),
    BeforeValidator(lambda value: (value,) if isinstance(value, str | Path) else value),
    Spoken("a list of paths", "FILE [FILE ...]"),
]
Checkpoint = Annotated[File | None, BeforeValidator(lambda value: None if value == BUNDLED else value)]
Conditions = Annotated[tuple[str, ...], BeforeValidator(_conditions), Spoken("names with commas", "NAMES")]
Canvas = Annotated[
    tuple[Count, Count],
    BeforeValidator(_sides),
    PlainSerializer(lambda size: f"{size[1]}x{size[0]}"),
    Spoken("WIDTHxHEIGHT, for instance 512x512", "WIDTHxHEIGHT"),
]
Size = Annotated[Canvas, AfterValidator(_eights), Spoken("WIDTHxHEIGHT, for instance 256x256", "WIDTHxHEIGHT")]
Pair = Annotated[tuple[float, float], Field(strict=False), Spoken("two numbers, for instance 0.2,0", "X,Y")]
Strengths = Annotated[
    dict[str, float], BeforeValidator(_by_condition), Spoken("a mapping such as {motion: 0.5}", "NAME=FACTOR")
]
Loras = Annotated[
    dict[File, Annotated[float, Field(allow_inf_nan=False)]],
    BeforeValidator(_by_file),
    Spoken("paths, or a mapping of paths to strengths", "FILE[=STRENGTH]"),
]
Schedules = Annotated[
    dict[str, Annotated[tuple[float, float], Field(strict=False), AfterValidator(_span)]],
    BeforeValidator(_by_condition),
    Spoken("a mapping such as {style: [0, 0.6]}", "NAME=START:END"),
]
Answer = Annotated[
    bool,
    Field(strict=True),
    BeforeValidator(lambda value: value == "yes" if value in ("yes", "no") else value),
    Spoken("yes or no", "yes|no"),
]
Device = Annotated[str, BeforeValidator(_device), Spoken("auto, cpu, cuda, cuda:N or mps", "NAME")]


# --- The table ------------------------------------------------------------------------------------------------------


def _setting(help: str, default: Any = None) -> Any:
    given = {"default_factory": dict} if default == {} else {"default": default}
    return dataclasses.field(**given, metadata={"help": help})


@checked(_tell)
class Settings:
    """Everything that one composition is made from. None stands for the checkpoint's, or the source's, own.

    Sizes are (height, width) in pixels, `start` is in seconds, `rate` and `fps` in frames a second; the rest is as the
    fields' help texts say.

    Raises:
        UserError: a value of the wrong type or one that is not possible, by the name of its field.
    """

    video: File | None = _setting("the source clip")
    use: Conditions = _setting(f"what to take from it, with commas: {', '.join(CONDITIONS)}", ())
    start: Annotated[float, Field(ge=0)] = _setting("where to begin in the clip, in seconds", 0.0)
    rate: Positive | None = _setting(
        "frames a second to take (default: the checkpoint's, 4 as a rule, more of short clips)"
    )
    motion_mode: Mode = _setting(
        "block vectors as in training (released, the default), or the file's own (stream)", "released"
    )
    nominal_height: Height | None = _setting(
        "pixels that the clip is scaled to before its motion is taken, 336 as trained (default: as it is)"
    )
    sketch_method: Method = _setting(
        "auto (as the checkpoint was trained, where its files are there), pidinet or edges", "auto"
    )
    depth_model: File | None = _setting(
        "a depth network: midas_v3_dpt_large.pth, or a folder (default: as in --models)"
    )
    depth_maps: File | None = _setting(
        "depth maps of the clip from elsewhere: a video, an image, or a folder of images"
    )
    depth_near: Literal["bright", "dark"] = _setting("what is near in these maps: bright (default) or dark", "bright")
    depth_scale: Positive | None = _setting(
        "the depth, 0 to 10, of what is nearest of all in these maps (default: their "
        "percentiles 2 and 98 become 0 and 2)"
    )
    mask: File | None = _setting("what is painted anew: an image, a video, or a folder of images")
    mask_white: White = _setting("what the white of --mask means: paint (anew, the default) or keep", "paint")
    mask_draw: Literal[(*MASKS, "any")] | None = _setting(
        f"draw a mask as the released training did: {', '.join(MASKS)} (of the frame), or any of them"
    )
    mask_seed: Seed = _setting("of the drawn mask (default: 0)", 0)
    models: Files = _setting("folders with the files of PiDiNet and MiDaS", ())

    tracks: File | None = _setting("a .json of tracks as spline editors save them: [{x, y}, ...], or a list of them")
    canvas: Canvas | None = _setting("that the tracks were drawn on (default: the video's)")
    radius: Positive | None = _setting(
        "how far a track moves what is around it, in pixels of the canvas (default: an eighth)"
    )
    pan: Pair = _setting(
        "the camera moves right and down over the video, in fractions of the frame; --pan=-0.2,0 for left", (0.0, 0.0)
    )
    zoom: Positive = _setting("the camera zooms by this factor over the video", 1.0)
    roll: float = _setting("the camera turns by so many degrees clockwise over the video", 0.0)
    easing: Easing = _setting(f"of these motions: {', '.join(EASINGS)}", "linear")

    text: Text = _setting("the prompt", "")
    negative: Text = _setting("the negative prompt", "")
    vgen_prompts: bool = _setting("append what VGen appends to the prompts of TF-T2V and VideoLCM", False)
    image: File | None = _setting("the single image: how the video begins")
    sketch: File | None = _setting("the single sketch: a drawing, taken as it is")
    sketch_lines: Literal["bright", "dark", "none"] | None = _setting(
        "what the drawing's lines are, bright or dark; none: it is a "
        "picture in which --sketch-method finds them (default: dark, or none with a --sketch-method for it)"
    )
    style: File | None = _setting("the style image")
    strength: Strengths = _setting("a condition's strength, for instance motion=0.5; may be repeated", {})
    schedule: Schedules = _setting("when a condition acts, for instance style=0:0.6 (fractions of the sampling)", {})

    init: File | None = _setting("a video to begin from, with --start and --rate")
    denoise: Annotated[float, Field(gt=0, le=1)] = _setting(
        "how much of it is made anew: near 0 little, 1 all of it", 1.0
    )

    out: File | None = _setting("what to write: .mp4, .webm, .gif, .webp, or a folder of .png")
    sheet: File | None = _setting("also write a contact sheet, a .png")
    frames: Count | None = _setting("number of frames (default: as the checkpoint was trained)")
    size: Size | None = _setting("in multiples of 8 (default: as the checkpoint was trained)")
    fps: Annotated[float, Field(gt=0, le=1000)] | None = _setting(
        "frames a second of the result (default: the source's, else 8)"
    )
    scale: UpTo64 | None = _setting("enlarge the pixels of the result this many times (default: to 256)")
    batch_size: UpTo64 = _setting("videos to compose together, with seeds from --seed on", 1)

    seed: Seed = _setting("of the noise", 0)
    sampler: Literal[SAMPLERS] | None = _setting(f"{', '.join(SAMPLERS)} (default: dpmpp_2m; lcm with --few-steps)")
    steps: Count | None = _setting("sampling steps (default: 20; 4 with --few-steps)")
    eta: Fraction = _setting("fresh noise in every step, for the ddim samplers", 0.0)
    guidance: float | None = _setting("guidance scale (default: the checkpoint's)")
    condition_guidance: float = _setting(
        "a scale of their own for the conditions that are not text or style; 1 is none", 1.0
    )
    rescale: Fraction = _setting("against over-saturation by strong guidance, 0 to 1 (arXiv 2305.08891)", 0.0)
    window: Count | None = _setting("frames of a window of a long video (default: as the checkpoint was trained)")
    overlap: Annotated[int, Field(ge=0, le=MORE)] | None = _setting(
        "frames that neighbouring windows share (default: half)"
    )
    carry: Fraction = _setting("strength of the single image and sketch after the first window (default: 0.5)", 0.5)

    checkpoint: Checkpoint = _setting("another checkpoint than the bundled one")
    parts: Files = _setting("files of what the checkpoint lacks: autoencoder, text and image towers", ())
    lora: Loras = _setting("a LoRA for the network and its strength (default: 1); may be repeated", {})
    few_steps: Answer | None = _setting(
        "yes: the checkpoint was distilled for few steps and no guidance, as VideoLCM, whose file does not say so; "
        "no: it was not"
    )
    prediction: Literal["epsilon", "v_prediction"] | None = _setting(
        "what the checkpoint predicts, epsilon or v_prediction, where ./vc info shows that it is taken for another"
    )
    zero_terminal_snr: Answer | None = _setting("whether its schedule ends in noise alone, in the same case")
    device: Device = _setting("auto, cpu, cuda, cuda:1, mps (default: auto)", "auto")
    dtype: Literal["auto", "fp32", "fp16", "bf16", "fp8"] = _setting(
        "how weights are kept: auto, fp32, fp16, bf16, fp8", "auto"
    )
    compute: Literal["auto", "fp32", "fp16", "bf16"] = _setting("what is computed in: auto, fp32, fp16, bf16", "auto")
    offload: bool = _setting("keep weights in main memory, on the device only when in use", False)
    compile: bool = _setting("compile the network first: slow to begin, then faster", False)
    chunk: Count | None = _setting("frames that are encoded or decoded at a time (default: 16, fewer of large ones)")
    tile: Annotated[int, Field(ge=64, le=MORE)] | None = _setting(
        "pixels of a side that are encoded or decoded at a time (default: all)"
    )

    # --- Reading and writing ---

    @staticmethod
    def from_mapping(values: Mapping[str, Any], folder: Path | None = None) -> "Settings":
        """Settings by their names, as a file holds them; relative paths are under `folder`. Raises `UserError`."""
        if not isinstance(values, Mapping):
            raise UserError(f"expected settings, a mapping of names to values, not a {type(values).__name__}.")
        for name in values:
            if name not in SETTINGS:
                raise UserError(f"there is no setting {shown(name)}{nearest(name, SETTINGS)}: see ./vc compose --help.")
        settings = Settings(**{name: value for name, value in values.items() if value is not None})
        return settings if folder is None else settings.with_paths(lambda path: folder / path)

    @staticmethod
    def from_yaml(path: str | Path) -> "Settings":
        """The settings in a `.yaml` or `.json`; its paths are relative to the file. Raises `UserError`."""
        with about(path):
            return Settings.from_mapping(read_yaml(path), Path(path).parent)

    def to_mapping(self) -> dict[str, Any]:
        """The settings by name, in values that JSON and YAML hold, without those of `LATER` that say nothing;
        `from_mapping` gives the same settings back."""
        plain = TypeAdapter(Settings).dump_python(self, mode="json")
        said = {name: value for name, value in plain.items() if name not in LATER or value != DEFAULTS[name]}
        return {**said, "checkpoint": plain["checkpoint"] or BUNDLED}

    def with_options(self, texts: Mapping[str, Any]) -> "Settings":
        """These settings with some replaced by options, as the command line gave their texts. Raises `UserError`.

        An option also takes the place of the setting that it excludes, so that a mask can be drawn instead of a file's.
        """
        changed = _displaced(texts)
        for name, text in texts.items():
            tell = partial(_tell, label=as_option, text=text)
            value = fitted(Settings, name, _from_text(name, text), tell)
            changed[name] = {**getattr(self, name), **value} if name in ("strength", "schedule") else value
        return dataclasses.replace(self, **changed)

    # --- Files ---

    def with_paths(self, change: Callable[[Path], Path]) -> "Settings":
        """These settings with a function applied to every path."""
        changed: dict[str, Any] = {name: tuple(map(change, getattr(self, name))) for name in FILES}
        changed["lora"] = {change(path): strength for path, strength in self.lora.items()}
        changed |= {name: change(value) for name, value in vars(self).items() if isinstance(value, Path)}
        return dataclasses.replace(self, **changed)

    def inputs(self) -> dict[str, tuple[Path, ...]]:
        """The files that this reads, by setting; the bundled checkpoint is not among them."""
        values = {name: getattr(self, name) for name in INPUTS}
        return {n: tuple(v) if isinstance(v, tuple | dict) else (v,) for n, v in values.items() if v}

    @property
    def moves_by_hand(self) -> bool:
        """Whether tracks or a camera move make the motion."""
        return any(getattr(self, name) != DEFAULTS[name] for name in MOVES)

    @property
    def lines(self) -> str:
        """What the lines of the single sketch's picture are; `none` where the sketch method has to find them."""
        meant = self.sketch_method != "auto" and "sketch" not in self.use
        return self.sketch_lines or ("none" if meant else "dark")

    @property
    def takes_frames(self) -> bool:
        """Whether more than its first frame is taken from the source."""
        return any(CONDITIONS[name].kind == "temporal" for name in self.use) or self.init is not None


LATER = ("vgen_prompts", "lora", "few_steps", "prediction", "zero_terminal_snr")
"""Settings that version 0.1 does not know, which refuses such names in a record."""

MOVES = ("tracks", "pan", "zoom", "roll")
"""Settings that make motion by hand."""

GOES_WITH = (
    ("canvas", "tracks"),
    ("radius", "tracks"),
    ("sketch_lines", "sketch"),
    ("depth_near", "depth_maps"),
    ("depth_scale", "depth_maps"),
    ("mask_white", "mask"),
    ("mask_seed", "mask_draw"),
)
"""A setting, and the one without which it has no effect."""

EITHER = (("depth_maps", "depth_model"), ("mask", "mask_draw"))
"""Settings of which one leaves nothing for the other."""

FILES = [name for name, hint in Settings.__annotations__.items() if hint is Files]
"""Settings that are any number of paths."""

_PATHS = [name for name, hint in Settings.__annotations__.items() if bare(hint) is Path]
INPUTS = (*(name for name in _PATHS if name not in ("out", "sheet")), "parts", "lora")
"""Settings that name files which must be there."""

SERVES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("motion_mode", "nominal_height"), ("motion",)),
    "sketch_method": ("sketch", "single_sketch"),
    **dict.fromkeys(("depth_model", "depth_maps", "depth_near", "depth_scale"), ("depth",)),
    **dict.fromkeys(("mask", "mask_white", "mask_draw", "mask_seed"), ("mask",)),
}
"""Settings that are about single conditions -> those that are made in another way by them."""

SETTINGS: dict[str, str] = {f.name: f.metadata["help"] for f in dataclasses.fields(Settings)}
"""The help text of each."""

_FIRST = {
    "video": "conditions from a video",
    "tracks": "motion made by hand",
    "text": "text and images",
    "init": "video to video",
    "out": "the video",
    "seed": "sampling",
    "checkpoint": "checkpoint and machine",
}
_BY_SUBJECT = zip(SETTINGS, accumulate(map(_FIRST.get, SETTINGS), lambda last, own: own or last), strict=True)
_USUAL = ("text", "image", "video", "use", "checkpoint", "out")
TITLES = dict.fromkeys(_USUAL, "what most runs need")
TITLES |= {name: title for name, title in _BY_SUBJECT if name not in TITLES}
"""Of the groups of the help, by setting, in the help's order."""

DEFAULTS = vars(Settings())


def _from_text(name: str, text: Any) -> Any:
    """What an option's text, or list of texts, says, as a file says it; the text itself where it cannot be."""
    kind = bare(Settings.__annotations__[name])
    try:
        if kind in (int, float):
            return kind(text)
        if name == "pan":
            return [float(part) for part in text.split(",")]
        if name in ("strength", "schedule"):
            pairs = [one.partition("=")[::2] for one in text]
            split = {name: [float(part) for part in value.split(":")] for name, value in pairs}
            return split if name == "schedule" else {name: factor for name, (factor,) in split.items()}
    except (ValueError, OverflowError):
        pass
    return text


def _displaced(given: Collection[str]) -> dict[str, Any]:
    """The defaults of what given options exclude, and of what goes with that, where they are not given too."""
    rivals = [pair for one in EITHER for pair in (one, one[::-1])]
    gone = {rival for name, rival in rivals if name in given}
    gone |= {name for name, other in GOES_WITH if other in gone}
    return {name: DEFAULTS[name] for name in gone - {*given}}


# --- Files of settings ----------------------------------------------------------------------------------------------


def read_yaml(path: str | Path) -> Any:
    """The content of a `.yaml` or `.json`. Raises `UserError` for one that is missing or cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file of settings at {path}: check the path.")
    try:
        text = path.read_text(encoding="utf-8")
        return parse_json(text) if path.suffix.lower() == ".json" else parse_yaml(text)
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read as settings ({error}): expected a mapping of names to values."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check that it may be read.") from error
