"""`./vc info` and `./vc convert`: show a checkpoint's contents; convert it to another layout or dtype."""

import dataclasses
import json as json_text
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from ..checkpoint.conversion import LAYOUTS
from ..checkpoint.conversion import convert as write_converted
from ..checkpoint.inspection import as_mapping, as_text, inspect
from ..checkpoint.lora import is_lora
from ..checkpoint.lora_inspection import as_text as lora_as_text
from ..checkpoint.lora_inspection import inspect_lora
from ..checkpoint.reading import BUNDLED
from ..configuration import Spoken
from ..errors import UserError
from ..terminal import argument, each, option, progress_bars
from .setting_types import Answer, Count, Positive, Size
from .settings import as_option

_Prediction = Annotated[Literal["epsilon", "v_prediction"], Spoken("epsilon or v_prediction", "epsilon|v_prediction")]


@dataclasses.dataclass
class Overrides:
    """Settings that tensors do not contain. Defaults: the file's metadata, else those of the network's family."""

    prediction: option(_Prediction | None, "the network's output; epsilon is the noise") = None
    zero_terminal_snr: option(Answer | None, "whether the noise schedule ends in pure noise") = None
    few_steps: option(Answer | None, "whether the network was distilled for few steps, as VideoLCM was") = None
    super_resolution: option(Answer | None, "whether a text-to-video network is VGen's SR600") = None
    size: option(Size | None, "frame size of the training videos") = None
    frames: option(Count | None, "number of frames in the training videos") = None
    rate: option(Positive | None, "frames per second of the training videos", shown="FPS") = None
    guidance: option(float | None, "default guidance scale") = None


_Overrides = Annotated[
    Overrides, arg(name="settings of the network that override those in the file", prefix_name=False)
]


def info(
    overrides: _Overrides,
    file: argument(
        Path | None,
        "a checkpoint, a LoRA, or a folder that diffusers wrote (default: the bundled checkpoint)",
        "[FILE]",
    ) = None,
    json: option(bool, "print the report as JSON") = False,
) -> int:
    with progress_bars() as progress:
        if file is not None and file.is_file() and is_lora(file):
            if given := [as_option(name) for name, value in vars(overrides).items() if value is not None]:
                raise UserError(f"{given[0]} has no effect on {file}, because it is a LoRA. Leave it out.")
            lora = inspect_lora(file, progress)
            mapping, text, complete = dataclasses.asdict(lora) | {"path": str(file)}, lora_as_text(lora), True
        else:
            report = inspect(file or BUNDLED, progress, **vars(overrides))
            mapping, text, complete = as_mapping(report), as_text(report), report.complete
    print(json_text.dumps(mapping, indent=2) if json else text)
    return 0 if complete else 2


def convert(
    source: argument(Path, "a file or folder that ./vc info can read", "IN"),
    out: argument(
        Path,
        "a .safetensors or .pth file; for a network in the layout diffusers also a folder (a name without a suffix)",
        "OUT",
    ),
    overrides: _Overrides,
    add: option(each(Path), "a file with further parts; may be repeated", shown="FILE") = (),
    parts: option(str | None, "parts to write, separated by commas: model, vae, text, image", shown="NAMES") = None,
    layout: option(
        str | None,
        f"layout to write: {', '.join(LAYOUTS)} (default: released for a .pth of a network, else videocomposer)",
        shown="NAME",
    ) = None,
    dtype: option(str | None, "fp32, fp16, bf16 or fp8 (default: unchanged)", shown="NAME") = None,
) -> None:
    names = parts and [name.strip() for name in parts.split(",")]
    with progress_bars() as progress:
        report = write_converted(
            source, out, add=add, parts=names, layout=layout, dtype=dtype, progress=progress, **vars(overrides)
        )
    print(as_text(report, brief=True))
