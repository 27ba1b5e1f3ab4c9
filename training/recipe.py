"""A training run in one file: every setting of it, with its default and what it is for.

`training/recipes/*.yaml` are such files. The command line takes one, and options that change it:

    ./vc train training/recipes/synthetic.yaml --steps 50 --optimizer.learning-rate 1e-4
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from vc_core.checkpoint.reading import BUNDLED
from vc_core.conditions import CONDITIONS
from vc_core.configuration import (
    INTEGER,
    MORE,
    BeforeValidator,
    Field,
    File,
    Problem,
    bare,
    build,
    checked,
    limits,
    words,
)
from vc_core.errors import UserError, about, shown, spelled
from vc_core.parsing import parse_yaml, read_text
from vc_core.terminal import parsed_by_tyro


def _number(value: Any) -> Any:
    """Of a string too: YAML takes 1e-4, which has no point, for one."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Number = Annotated[float, BeforeValidator(_number)]
NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(ge=1e-9)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Decay = Annotated[Number, Field(ge=0, le=1 - 1e-9)]
Count = Annotated[int, Field(ge=1, le=MORE)]
Amount = Annotated[int, Field(ge=0, le=MORE)]


def tell(problem: Problem) -> str:
    """A problem of a recipe in words."""
    where, value, hint = problem.where, problem.value, problem.hint
    if problem.kind == "keys":
        names = [f.name for f in dataclasses.fields(hint)]
        near = difflib.get_close_matches(spelled(value[0]), names, n=1) or [f"one of {', '.join(names)}"]
        return f"The recipe has an unknown key {_joined(*where, value[0])}: expected {near[0]}."
    if problem.kind == "section":
        expected = "keys and values"
    elif problem.kind == "range" and (limit := limits(problem.item_hint)):
        expected = (
            f"{limit['ge']:g} or more" if limit.get("le", MORE) == MORE else f"{limit['ge']:g} to {limit['le']:g}"
        )
        value = float(value) if bare(hint) is float else value
    else:
        where, value, hint = (*where, *problem.inner), problem.item, problem.item_hint
        value, expected = list(value) if isinstance(value, tuple) else value, words(hint, ranges=False)
    return f"The recipe's {_joined(*where) or 'top'} is {shown(value)}: expected {expected}."


def _joined(*where: str | int) -> str:
    return ".".join(map(spelled, where))


@dataclass(frozen=True)
class Start:
    """What the run begins from."""

    kind: Literal["scratch", "stable_diffusion", "checkpoint", "modelscope", "videocomposer"] = "scratch"
    """scratch: fresh weights; stable_diffusion: a 2D UNet of SD 2.1, whose weights become the 3D network's spatial
    layers, the temporal ones the identity; checkpoint: any that `./vc info` knows, of this project, VideoComposer's,
    VGen's, and ModelScope's text-to-video UNet or ZeroScope in their own layout or diffusers'; modelscope and
    videocomposer are other names of the same. Entering stage 2 the first convolution keeps its channels and gets zero
    ones."""
    checkpoint: File | None = None
    """File of the network that the run begins from, or diffusers' folder; none for scratch."""
    parts: tuple[File, ...] = ()
    """Files that bring the autoencoder and the towers, where the checkpoint has none."""
    network: File | None = None
    """JSON of a `vc_core.config.Config`, the sizes of a network from scratch; by default the checkpoint's, else the
    released ones."""


@dataclass(frozen=True)
class Domain:
    """One source of samples, which some of the ranks train on."""

    kind: Literal["shards", "folder", "synthetic"] = "synthetic"
    """shards: what `./vc prepare` wrote, or shards of other programs; folder: video files with captions, or shards of
    other programs; synthetic: drawn scenes. See training/README.md for the forms of captions."""
    path: File | None = None
    """Folder of the shards or of the videos; for synthetic scenes the folder of their cache, which is filled first,
    and without one they are drawn anew each time."""
    captions: File | None = None
    """CSV, TSV, JSONL or JSON of file names and captions, for a folder; by default a list in it such as
    `captions.csv` or `metadata.jsonl`, else the texts beside its files."""
    frames: Count = 16
    """Frames of a sample; 1 trains on images, with the temporal layers left out."""
    lengths: tuple[int, ...] = ()
    """Numbers of frames of which each step draws one instead of `frames`; of a shorter one there are as many samples
    more as it is shorter. Listed twice, it is drawn twice as often."""
    rate: Annotated[Number, Field(ge=0.01, le=1000)] | None = None
    """Frames a second of the clips of a folder; by default the network's own, see `vc_core.video.plan_frames`. Shards
    were prepared with theirs, and with the next one."""
    nominal_height: Annotated[int, Field(ge=16, le=8192)] | None = None
    """Height in pixels that the videos of a folder are scaled to before their motion is taken, for instance 336."""
    ranks: Count = 1
    """Share of the ranks that train on this domain, as a whole number beside the other domains' (3 and 1: three
    quarters and one quarter)."""
    batch: Count = 1
    """Samples for each rank and step."""
    weight: NonNegative = 1.0
    """Of its loss beside the other domains'."""
    without: tuple[str, ...] = ()
    """Conditions that none of its samples keep (text and style may be among them), for instance depth where no network
    for it is at hand."""
    count: Count = 2560
    """Number of synthetic clips; folders and shards give all that they have."""
    max_bad: Fraction = 0.01
    """Share of samples that may be unreadable; more stop the run."""


_ONLY = {"shards": (), "folder": ("captions", "rate", "nominal_height"), "synthetic": ("count",)}
"""Kinds of data -> fields of a domain that are for them alone; shards were prepared with theirs."""


@dataclass(frozen=True)
class Loss:
    """What is learned. The noise schedule is the network config's."""

    prediction: Literal["epsilon", "v_prediction"] | None = None
    """What the network predicts; by default what the checkpoint says."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that its last step is noise alone (arXiv 2305.08891); needs v_prediction."""
    min_snr_gamma: NonNegative | None = None
    """Weights of Min-SNR (arXiv 2303.09556), for instance 5; none by default."""
    offset_noise: NonNegative = 0.0
    """Strength of a noise that is constant over each frame, for instance 0.1; 0 is none."""
    dropout: Literal["independent", "released"] = "independent"
    """independent: each sample keeps all with 0.1, drops all with 0.1, else drops each condition with 0.5; released:
    the released code's draw of a count for the whole batch, which biases it."""
    text_dropout: Fraction | None = None
    """Stage 1: share of samples without their text, for guidance; none in stage 2, whose dropout drops text too."""
    lone: dict[str, Number] = field(default_factory=dict)
    """Shares of samples that show a condition without the others that would tell as much, beyond the paper's rule, for
    instance motion 0.35; see `training.objective.draw_kept`."""
    moving_gain: NonNegative = 0.0
    """How much more moving content counts, see `training.objective.moving_weight`."""
    no_style: Fraction = 0.0
    """Share of the steps that have no style token at all, as when no style is wired; the paper's is 0."""


@dataclass(frozen=True)
class Optimizer:
    """AdamW, or Muon for small networks from scratch."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw: fused; muon: see `training.muon`."""
    learning_rate: NonNegative = 5e-5
    """Of the spatial layers and all that is not temporal."""
    temporal_learning_rate: NonNegative | None = None
    """Of the temporal layers and the STC-encoders; by default the same."""
    weight_decay: NonNegative = 0.01
    """Decoupled."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's."""
    clip: Positive = 1.0
    """Largest norm of the gradient."""
    accumulate: Count = 1
    """Batches of each rank whose gradients are summed for one step."""
    warmup: Amount = 1000
    """Steps over which the learning rate rises from 0."""
    decay: Literal["cosine", "constant"] = "cosine"
    """How the learning rate falls after the warm-up: to `final_rate` by a cosine, or not at all."""
    final_rate: Fraction = 0.1
    """Factor of the learning rate at the end."""
    ema: Decay = 0.9999
    """Decay of the averaged weights; 0 keeps none."""


@dataclass(frozen=True)
class Train:
    """What of the network is trained."""

    what: Literal["all", "temporal", "stc", "lora"] = "all"
    """all; temporal: the temporal layers; stc: the STC-encoders; lora: low-rank changes of the linear layers."""
    lora_from: File | None = None
    """A LoRA's file to train on, whose rank, scale and layers hold; by default a new one."""
    lora_rank: Count = 16
    """Rank of the LoRA's matrices."""
    lora_alpha: Positive | None = None
    """Scale of the LoRA times its rank; by default the rank."""
    lora_on: tuple[str, ...] = ("spatial.block", "temporal.block")
    """Parts of module names whose linear layers get a LoRA; one that matches nothing is an error."""


@dataclass(frozen=True)
class Engine:
    """How the work is spread and kept."""

    parallel: Literal["ddp", "fsdp2", "hsdp"] = "ddp"
    """ddp: a copy on every rank; fsdp2: sharded over all; hsdp: sharded within nodes, copied among them."""
    precision: Literal["fp32", "bf16", "auto"] = "bf16"
    """Type of the computation; weights stay in fp32. bf16 is for CUDA: elsewhere it is fp32 too. auto: bf16 on CUDA and
    on processors with units for it (AMX), else fp32."""
    checkpointing: bool = False
    """Recompute activations in the backward pass."""
    compile: bool = False
    """Run the network through torch.compile."""
    device: str = "auto"
    """auto, cpu or cuda."""
    keep: Count = 3
    """Checkpoints that are kept, the last ones."""
    save_every: Count = 1000
    """Steps between checkpoints."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes of each rank that read samples ahead; 0 reads them between the steps."""


@dataclass(frozen=True)
class Watch:
    """What is shown of the run."""

    log_every: Count = 20
    """Steps between lines of the log and of tensorboard."""
    validate_every: Amount = 0
    """Steps between validation videos; 0 makes none."""
    prompts: tuple[str, ...] = ()
    """Texts of the validation videos."""
    seeds: tuple[int, ...] = (0,)
    """Of the validation videos."""
    samples: Amount = 0
    """Samples of the first domain that are composed too, with all of their conditions that no network has to make."""


@checked(tell)
class Recipe:
    """A whole run."""

    out: File = Path("runs/run")
    """Folder of the run: checkpoints, logs, validation videos."""
    stage: Annotated[Literal[1, 2], INTEGER] = 2
    """1: text to video; 2: compositional."""
    steps: Count = 268_000
    """Of the optimizer, after which the run is over."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Everything random in a step is a function of the seed and the sample's number."""
    height: int = 256
    """Of the videos, in pixels."""
    width: int = 256
    """Of the videos, in pixels."""
    ranks: Annotated[int, Field(ge=1, le=1024)] | None = None
    """On a CPU: processes of one thread each that share the recipe's batches, so that a step learns from the same
    samples whatever their number. By default as many as cores, where a batch can be shared among them evenly; 1 is
    one process with all threads. GPUs are given to ranks by torchrun, see training/README.md."""
    depth_model: File | None = None
    """Network for the depth that the data does not bring, see `vc_core.extract.depth`; by default the released MiDaS,
    where it is found in the folders of VC_MODELS."""
    start: Start = field(default_factory=Start)
    data: tuple[Domain, ...] = (Domain(),)
    """One domain, or several that share the ranks: a quarter of images beside video is the paper's."""
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    engine: Engine = field(default_factory=Engine)
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        if not self.data or not sum(domain.weight for domain in self.data):
            raise UserError("The recipe's data has no domain with a weight: give one source of samples or several.")
        for i, domain in enumerate(self.data):
            for kind, name in [(kind, name) for kind, names in _ONLY.items() for name in names if kind != domain.kind]:
                if getattr(domain, name) != (default := getattr(Domain, name)):
                    raise UserError(
                        f"The recipe's data.{i}.{name} is for data of the kind {kind}, and data.{i} is of "
                        f"the kind {domain.kind}: leave it out, or at {default}."
                    )
            if unknown := [name for name in domain.without if name not in ("text", "style", *CONDITIONS)]:
                raise UserError(
                    f"The recipe's data.{i}.without names {spelled(unknown, ', ')}: expected of text, "
                    f"style, {', '.join(CONDITIONS)}."
                )
        if unknown := [name for name in self.loss.lone if name not in ("text", *CONDITIONS)]:
            raise UserError(
                f"The recipe's loss.lone names {spelled(unknown, ', ')}: expected of text, {', '.join(CONDITIONS)}."
            )
        if not all(share >= 0 for share in self.loss.lone.values()) or sum(self.loss.lone.values()) > 1:
            raise UserError(
                f"The recipe's loss.lone is {shown(self.loss.lone)}: expected shares of 0 or more whose "
                "sum is at most 1."
            )
        if self.optimizer.kind == "muon" and self.engine.parallel != "ddp":
            raise UserError(
                "The recipe's optimizer muon needs whole matrices, and engine.parallel "
                f"{self.engine.parallel} shards them: take ddp, or adamw."
            )
        if self.height % 8 or self.width % 8 or min(self.height, self.width) < 8:
            raise UserError(f"The recipe's size {self.width}x{self.height} is not possible: expected multiples of 8.")
        if self.start.kind != "scratch" and self.start.checkpoint is None:
            raise UserError(f"The recipe starts from {self.start.kind}: give start.checkpoint, the file of it.")
        if self.loss.text_dropout is not None and self.stage == 2:
            raise UserError("The recipe's loss.text_dropout is for stage 1: stage 2 drops text with the conditions.")
        if self.loss.zero_terminal_snr and self.loss.prediction == "epsilon":
            raise UserError(
                "The recipe's loss.zero_terminal_snr needs loss.prediction v_prediction: noise alone shows "
                "nothing of itself."
            )


# --- Reading --------------------------------------------------------------------------------------------------------

_READ = ("checkpoint", "parts", "network", "path", "captions", "depth_model", "lora_from")
"""Fields that name files to read, which a recipe may have beside it."""


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe's file, changed by options of the command line (`--optimizer.learning-rate 1e-4`).

    Files to read that a recipe names are looked for beside it, then in the current folder; `bundled` is the bundled
    checkpoint. `out` and what the options name are relative to the current folder.

    Raises:
        UserError: no such file, broken YAML, unknown keys, or values of another type or out of their range.
        SystemExit: of tyro, for options that are wrong (2) and for `--help` (0), which shows every field.
    """
    path = Path(path)
    described = f"A training run by the recipe {path}, whose values are shown as the defaults."
    recipe = parsed_by_tyro(Recipe, list(overrides), f"vc train {path}", described, default=_read_yaml(path))
    return _with_files(recipe, None)


def _read_yaml(path: Path) -> Recipe:
    try:
        plain = parse_yaml(read_text(path))
    except OSError as error:
        raise UserError(
            f"The recipe {path} cannot be read ({error.strerror}): name one such as those in training/recipes."
        ) from error
    except ValueError as error:
        raise UserError(f"The recipe {path} is no valid YAML: {error}.") from error
    with about(path):
        return _with_files(from_plain(plain or {}), path.parent)


def from_plain(plain: Any) -> Recipe:
    """A recipe from values of YAML or JSON, the inverse of `as_plain`.

    Raises:
        UserError: an unknown key, a value of another type or out of its range. It names the key.
    """
    return build(Recipe, plain, tell)


def _with_files(value: Any, folder: Path | None) -> Any:
    """A recipe, or a part of it, whose files to read are where they are."""
    if isinstance(value, tuple):
        return tuple(_with_files(item, folder) for item in value)
    if not dataclasses.is_dataclass(value):
        return value
    changes = {}
    for f in dataclasses.fields(value):
        of = getattr(value, f.name)
        if f.name in _READ and of:
            changes[f.name] = tuple(_file(p, folder) for p in of) if isinstance(of, tuple) else _file(of, folder)
        else:
            changes[f.name] = _with_files(of, folder)
    return dataclasses.replace(value, **changes)


def _file(path: Path, folder: Path | None) -> Path:
    if str(path) == "bundled":
        return BUNDLED
    return folder / path if folder is not None and (folder / path).exists() else path


def as_plain(recipe: Recipe, whole_paths: bool = True) -> dict[str, Any]:
    """A recipe in values that YAML and JSON hold.

    Args:
        whole_paths: False leaves of paths the last name alone, for what others will read.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return (str(value) if whole_paths else value.name) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(recipe))
