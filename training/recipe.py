"""All settings of a training run, with their defaults and their meaning.

`training/recipes/*.yaml` are recipes. The command line reads one, and options that change it:

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

RECIPES = Path(__file__).parent / "recipes"


def _number(value: Any) -> Any:
    """Convert a string as well, because YAML reads 1e-4 (no decimal point) as a string."""
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


def message_of(problem: Problem) -> str:
    """Return the message for a problem in a recipe."""
    where, value, hint = problem.where, problem.value, problem.hint
    if problem.kind == "keys":
        names = [f.name for f in dataclasses.fields(hint)]
        near = difflib.get_close_matches(spelled(value[0]), names, n=1)
        advice = f"Did you mean {near[0]}?" if near else f"Expected one of {', '.join(names)}."
        return f"Unknown recipe key {_joined(*where, value[0])}. {advice}"
    if problem.kind == "section":
        expected = "keys and values"
    elif problem.kind == "range" and (limit := limits(problem.item_hint)):
        ends = _ends(limit)
        low, high = (f"{number:g}" if isinstance(number, float) else number for number in ends)
        below = float(high) > float(ends[1])  # rounded up: the end itself is excluded, as in 1 - 1e-9
        expected = f"{low} or more" if high == MORE else f"{low} {'or more and below' if below else 'to'} {high}"
        value = float(value) if bare(hint) is float else value
    else:
        where, value, hint = (*where, *problem.inner), problem.item, problem.item_hint
        value, expected = list(value) if isinstance(value, tuple) else value, words(hint, ranges=False)
    name = f"Recipe key {_joined(*where)}" if where else "The recipe"
    return f"{name} is {shown(value)}. Expected {expected}."


def _ends(limit: dict[str, Any]) -> tuple[float, float]:
    return limit["ge"], limit.get("le", MORE)


def _joined(*where: str | int) -> str:
    return ".".join(map(spelled, where))


@dataclass(frozen=True)
class Start:
    """The weights that the run starts from."""

    kind: Literal["scratch", "stable_diffusion", "checkpoint", "modelscope", "videocomposer"] = "scratch"
    """scratch: new weights; stable_diffusion: a 2D UNet of SD 2.1 (its weights become the spatial layers, new temporal
    layers start as the identity); checkpoint: any that `./vc info` recognizes: this project's, VideoComposer's,
    VGen's, ModelScope's text-to-video UNet or ZeroScope, also in diffusers' layout; modelscope and videocomposer are
    other names for checkpoint. At the start of stage 2, the first convolution gets new input channels with zero
    weights."""
    checkpoint: File | None = None
    """File of the network that the run starts from, or a diffusers folder; not for scratch."""
    parts: tuple[File, ...] = ()
    """Files with the autoencoder and the text and image towers, if the checkpoint does not contain them."""
    network: File | None = None
    """JSON file of a `vc_core.config.Config` with the network's sizes. Default: the checkpoint's config, or the
    released sizes."""


@dataclass(frozen=True)
class Domain:
    """One source of samples. Some of the ranks train on it."""

    kind: Literal["shards", "folder", "synthetic"] = "synthetic"
    """shards: shards from `./vc prepare` or other programs; folder: video files with captions, or shards from other
    programs; synthetic: rendered scenes. training/README.md lists the caption formats."""
    path: File | None = None
    """Folder of the shards or videos. For synthetic scenes: folder of their cache, which is filled first; without it,
    scenes are rendered again each time."""
    captions: File | None = None
    """For a folder: CSV, TSV, JSONL or JSON with file names and captions. Default: a list in the folder such as
    `captions.csv` or `metadata.jsonl`, or one text file next to each video."""
    frames: Count = 16
    """Frames per sample. 1 trains on images and skips the temporal layers."""
    lengths: tuple[int, ...] = ()
    """Clip lengths in frames, instead of `frames`: each step picks one at random. Shorter clips come in larger batches,
    so that the number of frames stays the same. A length that is listed twice is picked twice as often."""
    rate: Annotated[Number, Field(ge=0.01, le=1000)] | None = None
    """For a folder: frames per second of its clips. Default: the network's own rate, see `vc_core.video.plan_frames`.
    Shards contain this and the next setting."""
    nominal_height: Annotated[int, Field(ge=16, le=8192)] | None = None
    """For a folder: height in pixels that videos are scaled to before motion is extracted, for example 336."""
    ranks: Count = 1
    """Relative number of ranks that train on this domain (3 here and 1 in another domain: three quarters and one
    quarter)."""
    batch: Count = 1
    """Samples per rank and step."""
    weight: NonNegative = 1.0
    """Weight of this domain's loss, relative to the other domains."""
    without: tuple[str, ...] = ()
    """Conditions that are never used, which may include text and style; for example depth if no depth network is
    available."""
    count: Count = 2560
    """Number of synthetic clips. Folders and shards always use all of their clips."""
    max_bad: Fraction = 0.01
    """Fraction of samples that may be unreadable before the run stops."""


_TEACHERS = ("prediction", "zero_terminal_snr", "min_snr_gamma", "offset_noise", "text_dropout")
"""Fields of `Loss` that a distillation takes from its teacher, or does without."""
_ONLY = {"shards": (), "folder": ("captions", "rate", "nominal_height"), "synthetic": ("count",)}
"""Kind of data -> fields of a domain that work only with this kind."""


@dataclass(frozen=True)
class Loss:
    """The loss. The noise schedule comes from the network's config."""

    kind: Literal["diffusion", "consistency"] = "diffusion"
    """diffusion: predict the noise, or v, in noisy videos; consistency: distil the starting checkpoint for few sampling
    steps, see the section distillation."""
    prediction: Literal["epsilon", "v_prediction"] | None = None
    """What the network predicts. Default: as in the checkpoint."""
    zero_terminal_snr: bool = False
    """Rescale the noise schedule so that its last step is pure noise (arXiv 2305.08891). Requires v_prediction."""
    min_snr_gamma: NonNegative | None = None
    """Gamma of Min-SNR loss weights (arXiv 2303.09556), for example 5. Default: no weights."""
    offset_noise: NonNegative = 0.0
    """Strength of extra noise that is constant over each frame, for example 0.1. 0 = none."""
    dropout: Literal["independent", "released"] = "independent"
    """Condition dropout. independent: each sample keeps all with probability 0.1, drops all with 0.1, and otherwise
    drops each condition with 0.5; released: as the released code does, which draws counts per batch and drops more."""
    text_dropout: Fraction | None = None
    """Stage 1: fraction of samples without text, so that guidance works. Not for stage 2, which drops text with the
    other conditions."""
    lone: dict[str, Number] = field(default_factory=dict)
    """Fraction of samples that keep one condition without others that contain the same information, for example motion
    0.35; not in the paper, see `training.objective.draw_kept`."""
    moving_gain: NonNegative = 0.0
    """How much more moving content weighs in the loss, see `training.objective.moving_weight`."""
    no_style: Fraction = 0.0
    """Fraction of steps without any style token, as when no style is connected. 0 in the paper."""


@dataclass(frozen=True)
class Distillation:
    """Settings of loss.kind consistency, see `training.distillation`. The target network is the average of the weights,
    with the decay optimizer.ema."""

    guidance: NonNegative | None = None
    """Guidance w of the teacher: cond + w * (cond - uncond), so w is one less than the same guidance scale in sampling.
    Default: the checkpoint's guidance scale, as VGen uses 9 for its networks."""
    negative: str | None = None
    """Negative prompt of the teacher. Default: VGen's for VGen's networks, otherwise empty."""
    huber: Positive = 0.001
    """Constant of the pseudo-Huber loss: larger errors count linearly, smaller ones squared."""


@dataclass(frozen=True)
class Optimizer:
    """AdamW, or Muon for small networks from scratch."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw: fused; muon: see `training.muon`."""
    learning_rate: NonNegative = 5e-5
    """Learning rate of the spatial and all other layers that are not temporal."""
    temporal_learning_rate: NonNegative | None = None
    """Learning rate of the temporal layers and STC-encoders. Default: the same."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's betas."""
    clip: Positive = 1.0
    """Maximum norm of the gradient."""
    accumulate: Count = 1
    """Batches per rank whose gradients are summed for one step."""
    warmup: Amount = 1000
    """Steps in which the learning rate rises from 0."""
    decay: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: a cosine down to `final_rate`, or constant."""
    final_rate: Fraction = 0.1
    """Learning rate at the end, as a fraction of the full one."""
    ema: Decay = 0.9999
    """Decay of the averaged weights (EMA). 0 = no averaging."""


@dataclass(frozen=True)
class Train:
    """The parts of the network that are trained."""

    what: Literal["all", "temporal", "stc", "lora"] = "all"
    """all: everything; temporal: the temporal layers; stc: the STC-encoders; lora: a LoRA on linear layers."""
    lora_from: File | None = None
    """LoRA file to continue from; its rank, scale and layers are used. Default: a new LoRA."""
    lora_rank: Count = 16
    """Rank of the LoRA's matrices."""
    lora_alpha: Positive | None = None
    """Alpha of the LoRA: its scale times its rank. Default: the rank."""
    lora_on: tuple[str, ...] = ("spatial.block", "temporal.block")
    """Parts of module names. Linear layers whose names contain one of them get a LoRA; each must match some layer."""


@dataclass(frozen=True)
class Engine:
    """Devices, processes, precision and checkpoints."""

    parallel: Literal["ddp", "fsdp2", "hsdp"] = "ddp"
    """ddp: each rank has a copy of the weights; fsdp2: weights are sharded over all ranks; hsdp: sharded within a node,
    copied between nodes."""
    precision: Literal["fp32", "bf16", "auto"] = "bf16"
    """Precision of the computation. bf16: only on CUDA, otherwise fp32 is used. auto: bf16 on CUDA and on CPUs with
    AMX, otherwise fp32."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """Precision in which the network is stored during training. bf16 halves the memory of its matrices, their gradients
    and averages; changes are rounded up or down at random, so that small ones are not lost. Computes in bf16 on every
    device."""
    offload: bool = False
    """Keep fp32 weights, AdamW's averages and the running average in the computer's memory. The GPU has only the
    network, in the precision `weights`, and its gradients."""
    checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    compile: bool = False
    """Compile the network with torch.compile."""
    device: str = "auto"
    """auto, cpu or cuda."""
    keep: Count = 3
    """Number of checkpoints to keep, the newest ones."""
    save_every: Count = 1000
    """Steps between checkpoints."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes per rank that read samples ahead. 0 = read between steps."""


@dataclass(frozen=True)
class Watch:
    """Log and validation videos."""

    log_every: Count = 20
    """Steps between lines of the log and points in tensorboard."""
    validate_every: Amount = 0
    """Steps between validation videos. 0 = no videos."""
    prompts: tuple[str, ...] = ()
    """Prompts of the validation videos."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the validation videos."""
    samples: Amount = 0
    """Number of samples of the first domain to compose videos from as well, with all of their conditions that need no
    network."""


@checked(message_of)
class Recipe:
    """All settings of a run."""

    out: File = Path("runs/run")
    """Folder of the run: checkpoints, logs, validation videos."""
    stage: Annotated[Literal[1, 2], INTEGER] = 2
    """1: text to video; 2: compositional."""
    steps: Count = 268_000
    """Optimizer steps of the run."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Random seed. Everything random in a step depends only on the seed and the number of the sample."""
    height: int = 256
    """Height of the videos in pixels."""
    width: int = 256
    """Width of the videos in pixels."""
    ranks: Annotated[int, Field(ge=1, le=1024)] | None = None
    """On a CPU: number of processes, with one thread each. They split the recipe's batches, so a step learns from the
    same samples with any number. Default: as many as cores, if the batch can be split evenly. 1 = one process with all
    threads. For several GPUs use torchrun, see training/README.md."""
    depth_model: File | None = None
    """Depth network, used if the data contains no depth, see `vc_core.extract.depth`. Default: the released MiDaS, if
    it is in a folder of VC_MODELS."""
    start: Start = field(default_factory=Start)
    data: tuple[Domain, ...] = (Domain(),)
    """One domain, or several that share the ranks. The paper uses a quarter of the ranks for images."""
    loss: Loss = field(default_factory=Loss)
    distillation: Distillation = field(default_factory=Distillation)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    engine: Engine = field(default_factory=Engine)
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        if not self.data or not sum(domain.weight for domain in self.data):
            raise UserError("Recipe key data contains no domain with a weight above 0. Add one.")
        for i, domain in enumerate(self.data):
            for kind, name in [(kind, name) for kind, names in _ONLY.items() for name in names if kind != domain.kind]:
                if getattr(domain, name) != (default := getattr(Domain, name)):
                    raise UserError(
                        f"Recipe key data.{i}.{name} works only with kind {kind}, but data.{i}.kind is {domain.kind}. "
                        f"Remove it, or set it to {'null' if default is None else default}."
                    )
            if unknown := [name for name in domain.without if name not in ("text", "style", *CONDITIONS)]:
                raise UserError(
                    f"Recipe key data.{i}.without contains {spelled(unknown, ', ')}. Expected some of text, "
                    f"style, {', '.join(CONDITIONS)}."
                )
        if unknown := [name for name in self.loss.lone if name not in ("text", *CONDITIONS)]:
            raise UserError(
                f"Recipe key loss.lone contains {spelled(unknown, ', ')}. Expected some of text, "
                f"{', '.join(CONDITIONS)}."
            )
        if not all(fraction >= 0 for fraction in self.loss.lone.values()) or sum(self.loss.lone.values()) > 1:
            raise UserError(
                f"Recipe key loss.lone is {shown(self.loss.lone)}. Expected fractions of 0 or more with a sum of at "
                "most 1."
            )
        if self.optimizer.kind == "muon" and self.engine.parallel != "ddp":
            raise UserError(
                "Recipe key optimizer.kind is muon, which requires complete matrices, but engine.parallel "
                f"{self.engine.parallel} shards them. Use ddp or adamw."
            )
        self._check_memory()
        if self.height % 8 or self.width % 8 or min(self.height, self.width) < 8:
            raise UserError(f"The recipe's size is {self.width}x{self.height}. Expected multiples of 8.")
        if self.start.kind != "scratch" and self.start.checkpoint is None:
            raise UserError(f"Recipe key start.kind is {self.start.kind}, which requires a file. Set start.checkpoint.")
        if self.loss.text_dropout is not None and self.stage == 2:
            raise UserError(
                "Recipe key loss.text_dropout works only in stage 1. Remove it: stage 2 drops text with the other "
                "conditions."
            )
        if self.loss.zero_terminal_snr and self.loss.prediction == "epsilon":
            raise UserError(
                "Recipe key loss.zero_terminal_snr requires loss.prediction v_prediction, because a network learns "
                "nothing by predicting the noise in pure noise."
            )
        if self.distils:
            self._check_distillation()
        elif self.distillation != Distillation():
            raise UserError(
                "The recipe's section distillation works only with loss.kind consistency, but loss.kind is "
                f"{self.loss.kind}. Remove the section, or set loss.kind to consistency."
            )

    def _check_memory(self) -> None:
        engine = self.engine
        for name in ("weights", "offload"):
            if getattr(engine, name) != getattr(Engine, name) and engine.parallel != "ddp":
                raise UserError(
                    f"Recipe key engine.{name} works only with engine.parallel ddp, but it is {engine.parallel}, which "
                    f"saves memory by sharding. Remove engine.{name}, or set engine.parallel to ddp."
                )
        if engine.weights == "bf16" and engine.precision == "fp32":
            raise UserError(
                "Recipe key engine.weights is bf16, which requires computing in bf16, but engine.precision is fp32. "
                "Set engine.precision to bf16, or engine.weights to fp32."
            )
        if engine.weights == "bf16" and self.optimizer.kind == "muon" and not engine.offload:
            raise UserError(
                "Recipe key engine.weights is bf16, but optimizer.kind muon requires fp32 weights. Set optimizer.kind "
                "to adamw, or engine.offload to true."
            )
        if engine.offload and self.distils:
            raise UserError(
                "Recipe key engine.offload does not work with loss.kind consistency, whose target network must be on "
                "the GPU. Set engine.offload to false."
            )

    @property
    def distils(self) -> bool:
        """Whether the run is a distillation for few steps."""
        return self.loss.kind == "consistency"

    def _check_distillation(self) -> None:
        if self.start.kind in ("scratch", "stable_diffusion"):
            raise UserError(
                f"Recipe key loss.kind is consistency, which requires a complete checkpoint as the teacher, but "
                f"start.kind is {self.start.kind}. Set start.kind to checkpoint."
            )
        if not self.optimizer.ema:
            raise UserError(
                "Recipe key optimizer.ema is 0, but loss.kind consistency requires an average of the weights as the "
                "target network. Set optimizer.ema to 0.95."
            )
        if self.engine.parallel != "ddp":
            raise UserError(
                f"Recipe key engine.parallel is {self.engine.parallel}, but loss.kind consistency works only with ddp. "
                "Set engine.parallel to ddp."
            )
        for name in _TEACHERS:
            if getattr(self.loss, name) != getattr(Loss, name):
                raise UserError(
                    f"Recipe key loss.{name} does not work with loss.kind consistency, because schedule, prediction "
                    "and noise are those of the teacher. Remove it."
                )


# --- Reading --------------------------------------------------------------------------------------------------------

_READ = ("checkpoint", "parts", "network", "path", "captions", "depth_model", "lora_from")
"""Fields with paths of files to read. They may be relative to the recipe's folder."""


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply command line options (`--optimizer.learning-rate 1e-4`).

    Paths of files to read are searched in the recipe's folder, then in the current folder; `bundled` is the bundled
    checkpoint. `out` and paths in options are relative to the current folder.

    Raises:
        UserError: the file is missing, the YAML is invalid, or a key or value is wrong.
        SystemExit: raised by tyro for wrong options (2) and for `--help` (0), which shows every field.
    """
    path = Path(path)
    described = f"A training run with the recipe {path}. The defaults shown are the values of this recipe."
    recipe = parsed_by_tyro(Recipe, list(overrides), f"vc train {path}", described, default=_read_yaml(path))
    return _with_files(recipe, None)


def _read_yaml(path: Path) -> Recipe:
    try:
        plain = parse_yaml(read_text(path))
    except OSError as error:
        recipes = [recipe.stem for recipe in RECIPES.glob("*.yaml")]
        near = difflib.get_close_matches(path.stem, recipes, n=1)
        advice = f"Did you mean training/recipes/{near[0]}.yaml?" if near else "Pass one of those in training/recipes."
        raise UserError(f"Cannot read the recipe {path} ({error.strerror}). {advice}") from error
    except ValueError as error:
        raise UserError(f"The recipe {path} is not valid YAML: {error}.") from error
    with about(path):
        return _with_files(from_plain(plain or {}), path.parent)


def from_plain(plain: Any) -> Recipe:
    """Build a recipe from values of YAML or JSON, the inverse of `as_plain`.

    Raises:
        UserError: a key is unknown, or a value has a wrong type or range. The message names the key.
    """
    return build(Recipe, plain, message_of)


def _with_files(value: Any, folder: Path | None) -> Any:
    """Resolve the paths of files to read in a recipe or in a part of it."""
    if isinstance(value, tuple):
        return tuple(_with_files(item, folder) for item in value)
    if not dataclasses.is_dataclass(value):
        return value
    changes = {}
    for f in dataclasses.fields(value):
        item = getattr(value, f.name)
        if f.name in _READ and item:
            paths = tuple(_file(path, folder) for path in item) if isinstance(item, tuple) else _file(item, folder)
            changes[f.name] = paths
        else:
            changes[f.name] = _with_files(item, folder)
    return dataclasses.replace(value, **changes)


def _file(path: Path, folder: Path | None) -> Path:
    if str(path) == "bundled":
        return BUNDLED
    return folder / path if folder is not None and (folder / path).exists() else path


def as_plain(recipe: Recipe, full_paths: bool = True) -> dict[str, Any]:
    """Convert a recipe to values that YAML and JSON can store.

    Args:
        full_paths: False keeps only the last name of each path, for files that other people will read.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return (str(value) if full_paths else value.name) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(recipe))
