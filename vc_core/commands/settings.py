"""The settings of one composition. One table of fields makes the options of `./vc compose`, the keys of its YAML files,
the record inside a produced file, and every check of a value."""
# ruff: noqa: RUF009 (what is called in the defaults of `Settings` gives a dataclasses.field)

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..conditions import CONDITIONS
from ..diffusion.samplers import SAMPLERS
from ..errors import UserError, shown, spelled
from ..parsing import parse_json, parse_yaml
from .values import (
    BUNDLED,
    CANVAS,
    CHECKPOINT,
    CONDITION_NAMES,
    DEVICE,
    EASINGS,
    MASKS,
    METHODS,
    MODES,
    PAIR,
    PATH,
    PATHS,
    SCHEDULES,
    SIZE,
    STRENGTHS,
    SWITCH,
    TEXT,
    WHITES,
    Kind,
    choice,
    nearest,
    number,
    whole,
)

Label = Callable[[str], str]
"""What a message calls a setting, from its field's name."""


def as_option(name: str) -> str:
    return "--" + name.replace("_", "-")


def as_key(name: str) -> str:
    return f"'{name}'"


# --- The table ------------------------------------------------------------------------------------------------------

Role = Literal["value", "input", "output"]


@dataclass(frozen=True)
class Setting:
    """What the table says of a field.

    Attributes:
        role: an input is a file that must exist, an output one that is written.
        serves: the conditions that are made in another way by it; empty where it is not about single conditions.
    """

    group: str
    kind: Kind
    help: str
    role: Role = "value"
    serves: tuple[str, ...] = ()


def _setting(
    group: str, kind: Kind, help: str, default: Any = None, role: Role = "value", serves: tuple[str, ...] = ()
) -> Any:
    metadata = {"setting": Setting(group, kind, help, role, serves)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_SOURCE, _IMAGES, _INIT = "conditions from a video", "text and images", "video to video"
_HAND = "motion made by hand"
_VIDEO, _SAMPLING, _MACHINE = "the video", "sampling", "checkpoint and machine"


@dataclass(frozen=True)
class Settings:
    """Everything that one composition is made from. None stands for the checkpoint's, or the source's, own.

    Sizes are (height, width) in pixels, `start` is in seconds, `rate` and `fps` in frames a second; the rest is as the
    fields' help texts say.

    Raises:
        UserError: a value of the wrong type or one that is not possible, by the name of its field.
    """

    video: Path | None = _setting(_SOURCE, PATH, "the source clip", role="input")
    use: tuple[str, ...] = _setting(
        _SOURCE, CONDITION_NAMES, f"what to take from it, with commas: {', '.join(CONDITIONS)}", ()
    )
    start: float = _setting(_SOURCE, number(0), "where to begin in the clip, in seconds", 0.0)
    rate: float | None = _setting(
        _SOURCE, number(above=0), "frames a second to take (default: 4, more where the clip is short)"
    )

    motion_mode: str = _setting(
        _SOURCE,
        choice(MODES),
        "block vectors as in training (released, the default), or the file's own (stream)",
        "released",
        serves=("motion",),
    )
    nominal_height: int | None = _setting(
        _SOURCE, whole(16, 8192), "pixels that the clip is scaled to before its motion is taken, 336 as trained "
        "(default: as it is)", serves=("motion",),
    )  # fmt: skip
    sketch_method: str = _setting(
        _SOURCE, choice(METHODS), "auto (as the checkpoint was trained, where its files are there), pidinet or edges",
        "auto", serves=("sketch", "single_sketch"),
    )  # fmt: skip
    depth_model: Path | None = _setting(
        _SOURCE, PATH, "a depth network: midas_v3_dpt_large.pth, or a folder (default: as in --models)",
        role="input", serves=("depth",),
    )  # fmt: skip
    depth_maps: Path | None = _setting(
        _SOURCE, PATH, "depth maps of the clip from elsewhere: a video, an image, or a folder of images",
        role="input", serves=("depth",),
    )  # fmt: skip
    depth_near: str = _setting(
        _SOURCE,
        choice(("bright", "dark")),
        "what is near in these maps: bright (default) or dark",
        "bright",
        serves=("depth",),
    )
    depth_scale: float | None = _setting(
        _SOURCE, number(above=0), "the depth, 0 to 10, of what is nearest of all in these maps (default: their "
        "percentiles 2 and 98 become 0 and 2)", serves=("depth",),
    )  # fmt: skip
    mask: Path | None = _setting(
        _SOURCE, PATH, "what is painted anew: an image, a video, or a folder of images", role="input", serves=("mask",)
    )
    mask_white: str = _setting(
        _SOURCE,
        choice(WHITES),
        "what the white of --mask means: paint (anew, the default) or keep",
        "paint",
        serves=("mask",),
    )
    mask_draw: str | None = _setting(
        _SOURCE, choice((*MASKS, "any")), f"draw a mask as the released training did: {', '.join(MASKS)} (of the "
        "frame), or any of them", serves=("mask",),
    )  # fmt: skip
    mask_seed: int = _setting(_SOURCE, whole(0, 2**63 - 1), "of the drawn mask (default: 0)", 0, serves=("mask",))
    models: tuple[Path, ...] = _setting(_SOURCE, PATHS, "folders with the files of PiDiNet and MiDaS", ())

    tracks: Path | None = _setting(
        _HAND, PATH, "a .json of tracks as spline editors save them: [{x, y}, ...], or a list of them", role="input"
    )
    canvas: tuple[int, int] | None = _setting(_HAND, CANVAS, "that the tracks were drawn on (default: the video's)")
    radius: float | None = _setting(
        _HAND, number(above=0), "how far a track moves what is around it, in pixels of the canvas (default: an eighth)"
    )
    pan: tuple[float, float] = _setting(
        _HAND,
        PAIR,
        "the camera moves right and down over the video, in fractions of the frame; --pan=-0.2,0 for left",
        (0.0, 0.0),
    )
    zoom: float = _setting(_HAND, number(above=0), "the camera zooms by this factor over the video", 1.0)
    roll: float = _setting(_HAND, number(), "the camera turns by so many degrees clockwise over the video", 0.0)
    easing: str = _setting(_HAND, choice(EASINGS), f"of these motions: {', '.join(EASINGS)}", "linear")

    text: str = _setting(_IMAGES, TEXT, "the prompt", "")
    negative: str = _setting(_IMAGES, TEXT, "the negative prompt", "")
    image: Path | None = _setting(_IMAGES, PATH, "the single image: how the video begins", role="input")
    sketch: Path | None = _setting(_IMAGES, PATH, "the single sketch: a drawing, taken as it is", role="input")
    sketch_lines: str | None = _setting(
        _IMAGES, choice(("bright", "dark", "none")), "what the drawing's lines are, bright or dark; none: it is a "
        "picture in which --sketch-method finds them (default: dark, or none with a --sketch-method for it)",
    )  # fmt: skip
    style: Path | None = _setting(_IMAGES, PATH, "the style image", role="input")
    strength: Mapping[str, float] = _setting(
        _IMAGES, STRENGTHS, "a condition's strength, for instance motion=0.5; may be repeated", {}
    )
    schedule: Mapping[str, tuple[float, float]] = _setting(
        _IMAGES, SCHEDULES, "when a condition acts, for instance style=0:0.6 (fractions of the sampling)", {}
    )

    init: Path | None = _setting(_INIT, PATH, "a video to begin from, with --start and --rate", role="input")
    denoise: float = _setting(
        _INIT, number(above=0, high=1), "how much of it is made anew: near 0 little, 1 all of it", 1.0
    )

    out: Path | None = _setting(
        _VIDEO, PATH, "what to write: .mp4, .webm, .gif, .webp, or a folder of .png", role="output"
    )
    sheet: Path | None = _setting(_VIDEO, PATH, "also write a contact sheet, a .png", role="output")
    frames: int | None = _setting(_VIDEO, whole(1), "number of frames (default: as the checkpoint was trained)")
    size: tuple[int, int] | None = _setting(_VIDEO, SIZE, "in multiples of 8 (default: as the checkpoint was trained)")
    fps: float | None = _setting(
        _VIDEO, number(above=0, high=1000), "frames a second of the result (default: the source's, else 8)"
    )
    scale: int | None = _setting(
        _VIDEO, whole(1, 64), "enlarge the pixels of the result this many times (default: to 256)"
    )
    batch_size: int = _setting(_VIDEO, whole(1, 64), "videos to compose together, with seeds from --seed on", 1)

    seed: int = _setting(_SAMPLING, whole(0, 2**63 - 1), "of the noise", 0)
    sampler: str = _setting(_SAMPLING, choice(SAMPLERS), f"{', '.join(SAMPLERS)} (default: dpmpp_2m)", "dpmpp_2m")
    steps: int = _setting(_SAMPLING, whole(1), "sampling steps (default: 20)", 20)
    eta: float = _setting(_SAMPLING, number(0, 1), "fresh noise in every step, for the ddim samplers", 0.0)
    guidance: float | None = _setting(_SAMPLING, number(), "guidance scale (default: the checkpoint's)")
    condition_guidance: float = _setting(
        _SAMPLING, number(), "a scale of their own for the conditions that are not text or style; 1 is none", 1.0
    )
    rescale: float = _setting(
        _SAMPLING, number(0, 1), "against over-saturation by strong guidance, 0 to 1 (arXiv 2305.08891)", 0.0
    )
    window: int | None = _setting(
        _SAMPLING, whole(1), "frames of a window of a long video (default: as the checkpoint was trained)"
    )
    overlap: int | None = _setting(_SAMPLING, whole(0), "frames that neighbouring windows share (default: half)")

    carry: float = _setting(
        _SAMPLING, number(0, 1), "strength of the single image and sketch after the first window (default: 0.5)", 0.5
    )

    checkpoint: Path | None = _setting(_MACHINE, CHECKPOINT, "another checkpoint than the bundled one", role="input")
    parts: tuple[Path, ...] = _setting(
        _MACHINE, PATHS, "files of what the checkpoint lacks: autoencoder, text and image towers", (), role="input"
    )
    device: str = _setting(_MACHINE, DEVICE, "auto, cpu, cuda, cuda:1, mps (default: auto)", "auto")
    dtype: str = _setting(
        _MACHINE, choice(("auto", "fp32", "fp16", "bf16", "fp8")), "how weights are kept: auto, fp32, fp16, bf16, fp8",
        "auto",
    )  # fmt: skip
    compute: str = _setting(
        _MACHINE, choice(("auto", "fp32", "fp16", "bf16")), "what is computed in: auto, fp32, fp16, bf16", "auto"
    )
    offload: bool = _setting(_MACHINE, SWITCH, "keep weights in main memory, on the device only when in use", False)
    compile: bool = _setting(_MACHINE, SWITCH, "compile the network first: slow to begin, then faster", False)
    chunk: int = _setting(_MACHINE, whole(1), "frames that are encoded or decoded at a time (default: 16)", 16)
    tile: int | None = _setting(
        _MACHINE, whole(64), "pixels of a side that are encoded or decoded at a time (default: all)"
    )

    def __post_init__(self) -> None:
        for name, setting in SETTINGS.items():
            object.__setattr__(self, name, _read(setting, name, getattr(self, name), as_key))

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

    @staticmethod
    def from_file(path: str | Path) -> "Settings":
        """The settings that a produced video, folder or sheet was made with. Raises `UserError` where it has none."""
        from .record import read_record

        return read_record(path).settings

    @staticmethod
    def from_json(text: str) -> "Settings":
        """What `to_json` wrote. Raises `UserError`."""
        try:
            return Settings.from_mapping(parse_json(text))
        except ValueError as error:
            raise UserError(f"The settings are no valid JSON ({error}): expected what was written by us.") from error

    def to_json(self) -> str:
        return json.dumps(self.to_mapping(), indent=2)

    def to_mapping(self) -> dict[str, Any]:
        """All settings by name, in values that JSON and YAML hold; `from_mapping` gives the same settings back."""
        values = {name: getattr(self, name) for name in SETTINGS}
        plain = {n: None if v is None else SETTINGS[n].kind.plain(v) for n, v in values.items()}
        return {**plain, "checkpoint": plain["checkpoint"] or BUNDLED}

    def with_options(self, texts: Mapping[str, Any]) -> "Settings":
        """These settings with some replaced by options, as the command line gave their texts. Raises `UserError`.

        An option also takes the place of the setting that it excludes, so that a mask can be drawn instead of a file's.
        """
        changed = _displaced(texts)
        for name, text in texts.items():
            setting = SETTINGS[name]
            value = _read(setting, name, text, as_option, setting.kind.from_text)
            changed[name] = {**getattr(self, name), **value} if setting.kind.merges else value
        return dataclasses.replace(self, **changed)

    # --- Files ---

    def with_paths(self, change: Callable[[Path], Path]) -> "Settings":
        """These settings with a function applied to every path."""
        changed = {
            name: setting.kind.each_path(getattr(self, name), change)
            for name, setting in SETTINGS.items()
            if setting.kind.each_path and getattr(self, name) is not None
        }
        return dataclasses.replace(self, **changed)

    def inputs(self) -> dict[str, tuple[Path, ...]]:
        """The files that this reads, by setting; the bundled checkpoint is not among them."""
        values = {name: getattr(self, name) for name, setting in SETTINGS.items() if setting.role == "input"}
        return {n: v if isinstance(v, tuple) else (v,) for n, v in values.items() if v}

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

    # --- What fits together ---

    def check(self, label: Label = as_option) -> None:
        """Refuses settings that contradict each other, or that have no effect. Raises `UserError`."""
        from .checks import contradictions

        for wrong, message in contradictions(self, label):
            if wrong:
                raise UserError(message)


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

SETTINGS: dict[str, Setting] = {f.name: f.metadata["setting"] for f in dataclasses.fields(Settings)}
DEFAULTS = {f.name: f.default for f in dataclasses.fields(Settings)}


def _read(setting: Setting, name: str, value: Any, label: Label, prepare: Callable[[Any], Any] = lambda v: v) -> Any:
    if value is None and DEFAULTS[name] is None:
        return None
    try:
        return setting.kind.read(prepare(value))
    except (ValueError, TypeError, OverflowError) as error:
        # A ValueError of ours says more than the kind; one of int() or float() says less.
        reason = str(error) if str(error).startswith(("expected", "unknown")) else f"expected {setting.kind.expected}"
        raise UserError(f"{label(name)} {spelled(value)} is not possible: {reason}.") from error


def _displaced(given: Collection[str]) -> dict[str, Any]:
    """The defaults of what given options exclude, and of what goes with that, where they are not given too."""
    rivals = [pair for one in EITHER for pair in (one, one[::-1])]
    gone = {rival for name, rival in rivals if name in given}
    gone |= {name for name, other in GOES_WITH if other in gone}
    return {name: DEFAULTS[name] for name in gone - {*given}}


# --- Files of settings ----------------------------------------------------------------------------------------------


class about:
    """Names a file, and what of it, in front of the message of any `UserError` from inside."""

    def __init__(self, path: str | Path, part: str = ""):
        self.prefix = f"{path}{part and ', ' + part}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, UserError) and not str(error).startswith(self.prefix):
            raise UserError(f"{self.prefix}: {error}") from error


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
