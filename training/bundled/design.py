"""The design of the bundled checkpoint, frozen in `training/recipes/bundled.json`, and how a budget is shared."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path

from training.recipe import tell
from training.trainer import changed
from vc_core.config import Config
from vc_core.configuration import build, checked
from vc_core.disk import make_folder, written_beside
from vc_core.errors import UserError
from vc_core.parsing import parse_json

RECIPE = Path(__file__).parents[1] / "recipes" / "bundled.json"
FILE = "design.json"
"""In a run's folder: what it was begun with."""
PARTS = ("autoencoder", "towers", "network")
SLACK = 0.5
"""Minutes by which the parts may have overrun their shares, a step or two each."""
_OF_TIME = ("shares", "most_minutes", "least_minutes")  # what a budget is shared by makes no other checkpoint


@checked(tell)
class PartPlan:
    """How a part is trained: `batch` frames or pairs in a step, of all ranks together, by the type of the device."""

    batch: dict[str, int]
    learning_rate: float


@checked(tell)
class NetworkPlan:
    """How the network is trained, of all ranks together; dictionaries are by the type of the device."""

    lengths: tuple[int, ...]  # numbers of frames of which each step draws one; shorter clips are as many more
    batch: dict[str, int]  # clips of all 16 frames in a step
    scenes: dict[str, int]  # that are kept at a time
    uses: dict[str, float]  # clips' worth of frames that are taken of each scene, about; of the first ones more
    learning_rate: float
    weight_decay: float
    lone: dict[str, float]  # by condition, see `training.objective.draw_kept`
    moving_gain: float  # like `no_style`, see `training.recipe.Loss`
    no_style: float


@checked(tell)
class Design:
    """Everything of a run but its budget, its device and what it begins with."""

    config: str  # JSON of the checkpoint's `Config`, beside the recipe
    autoencoder: PartPlan
    towers: PartPlan
    network: NetworkPlan
    shares: dict[str, float]  # of the budget, for the parts before the network, which gets the rest
    most_minutes: dict[str, float]  # that these parts take of however large a budget
    least_minutes: float  # of a budget, in which every part makes at least some steps on a CPU


def read_design(path: Path = RECIPE) -> tuple[Design, Config]:
    """A design and the config of the checkpoint that it makes.

    Raises:
        UserError: a file that cannot be read, unknown or missing keys, or values of another type.
    """
    try:
        design = build(Design, parse_json(path.read_text(encoding="utf-8")), tell)
        return design, Config.from_json((path.parent / design.config).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:  # the last one names keys that are missing
        raise UserError(f"{path}: cannot be read as a design ({error}): expected JSON such as {RECIPE}.") from error


def keep_design(out: Path, design: Design, config: Config) -> None:
    """Writes the design into a run's folder, or makes sure that it is the one that the run began with.

    Raises:
        UserError: it is another one; the message names what differs.
    """
    plain = json.loads(json.dumps(asdict(design) | {"config": json.loads(config.to_json())}))
    path = out / FILE
    if not path.exists():
        make_folder(out)
        with written_beside(path) as part:
            part.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        return
    for name, (before, now) in changed(json.loads(path.read_text(encoding="utf-8")), plain).items():
        if not name.startswith(_OF_TIME):
            raise UserError(
                f"{out} was begun with another design: {name} was {before} there and is {now} now; give another folder "
                "with --out."
            )


def budget(design: Design, minutes: float, used: Mapping[str, float], done: Collection[str] = ()) -> dict[str, float]:
    """Minutes for each part of `PARTS`. A part that is done keeps what it used, and the network gets the rest.

    Args:
        used: minutes that each part has used.
        done: parts that are complete, of an earlier start or of the file that the run begins with.

    Raises:
        UserError: the budget is too small; the message says what is enough.
    """
    if minutes < design.least_minutes:
        raise UserError(
            f"A budget of {minutes:g} minutes is too small to finish the autoencoder, the towers and the network: "
            f"expected --minutes {design.least_minutes:g} or more."
        )
    parts = {}
    for name in PARTS[:-1]:
        wanted = 0.0 if name in done else min(design.shares[name] * minutes, design.most_minutes[name])
        parts[name] = max(wanted, used.get(name, 0.0))
    before = sum(parts.values())
    enough = before + used.get("network", design.least_minutes * (1 - sum(design.shares.values())))
    if minutes < enough - SLACK:
        raise UserError(
            f"A budget of {minutes:g} minutes is too small to go on: the run has used {sum(used.values()):.1f}; "
            f"expected --minutes {math.ceil(10 * enough) / 10:g} or more."
        )
    return parts | {"network": minutes - before}
