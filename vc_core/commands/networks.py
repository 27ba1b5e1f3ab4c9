"""`./vc info` and `./vc convert`: what files of networks hold, and the same under other names, in another type."""

import dataclasses
import json as json_text
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from ..checkpoint.conversion import LAYOUTS
from ..checkpoint.conversion import convert as write_converted
from ..checkpoint.inspection import as_mapping, as_text, inspect
from ..checkpoint.reading import BUNDLED
from ..configuration import Spoken
from ..terminal import argument, each, option, progress_bars
from .settings import Answer, Count, Positive, Size

_Prediction = Annotated[Literal["epsilon", "v_prediction"], Spoken("epsilon or v_prediction", "epsilon|v_prediction")]


@dataclasses.dataclass
class Overrides:
    """What tensors cannot tell. By default what the file's metadata say, else what is assumed of its family."""

    prediction: option(_Prediction | None, "what it predicts: epsilon is the noise") = None
    zero_terminal_snr: option(Answer | None, "whether its schedule ends in noise alone") = None
    few_steps: option(Answer | None, "whether it was distilled for few steps, as VideoLCM") = None
    size: option(Size | None, "of the videos that it was trained on") = None
    frames: option(Count | None, "of these videos") = None
    rate: option(Positive | None, "of these videos, in frames a second", shown="FPS") = None
    guidance: option(float | None, "the default scale of the guidance") = None


_Overrides = Annotated[Overrides, arg(name="of the network, in place of what its file says", prefix_name=False)]


def info(
    overrides: _Overrides,
    file: argument(Path | None, "the file, or diffusers' folder (default: the bundled checkpoint)", "[FILE]") = None,
    json: option(bool, "the same as JSON") = False,
) -> int:
    with progress_bars() as progress:
        found = inspect(file or BUNDLED, progress, **vars(overrides))
    print(json_text.dumps(as_mapping(found), indent=2) if json else as_text(found))
    return 0 if found.whole else 2


def convert(
    source: argument(Path, "a file or folder that ./vc info knows", "IN"),
    out: argument(
        Path,
        "a .safetensors, or a .pth as released; of a network in the layout diffusers also a folder, by a name without "
        "an ending",
        "OUT",
    ),
    overrides: _Overrides,
    add: option(each(Path), "a file that brings further parts; may be repeated", shown="FILE") = (),
    parts: option(str | None, "what to write, with commas: model, vae, text, image", shown="NAMES") = None,
    layout: option(
        str | None,
        f"whose names: {', '.join(LAYOUTS)} (default: released for a .pth of a network, else videocomposer)",
    ) = None,
    dtype: option(str | None, "fp32, fp16, bf16 or fp8 (default: as it is)") = None,
) -> None:
    names = parts and [name.strip() for name in parts.split(",")]
    with progress_bars() as progress:
        made = write_converted(
            source, out, add=add, parts=names, layout=layout, dtype=dtype, progress=progress, **vars(overrides)
        )
    print(as_text(made, brief=True))
