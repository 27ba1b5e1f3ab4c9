"""A training run in one file: every setting of it, with its default and what it is for.

`training/recipes/*.yaml` are such files. The command line takes one, and options that change it:

    ./vc train training/recipes/synthetic.yaml --steps 50 --optimizer.learning-rate 1e-4
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vc_core.errors import UserError


@dataclass(frozen=True)
class Start:
    """What the run begins from."""

    kind: Literal["scratch", "stable_diffusion", "modelscope", "videocomposer"] = "scratch"
    """scratch: fresh weights; stable_diffusion: a 2D UNet of SD 2.1, whose weights become the 3D network's spatial
    layers, the temporal ones the identity; modelscope: ModelScope's text-to-video UNet; videocomposer: a checkpoint of
    this project or the released one. Entering stage 2 the first convolution keeps its channels and gets zero ones."""
    checkpoint: Path | None = None
    """File of the network that the run begins from; none for scratch."""
    parts: tuple[Path, ...] = ()
    """Files that bring the autoencoder and the towers, where the checkpoint has none."""
    network: Path | None = None
    """JSON of a `vc_core.config.Config`, the sizes of a network from scratch; by default the checkpoint's, else the
    released ones."""


@dataclass(frozen=True)
class Domain:
    """One source of samples, which some of the ranks train on."""

    kind: Literal["shards", "folder", "synthetic"] = "synthetic"
    """shards: what `./vc prepare` wrote; folder: video files with captions; synthetic: drawn scenes."""
    path: Path | None = None
    """Folder of the shards or of the videos; for synthetic scenes the folder of their cache."""
    captions: Path | None = None
    """CSV or JSONL of file names and captions, for a folder; by default `captions.csv` or `captions.jsonl` in it."""
    frames: int = 16
    """Frames of a sample; 1 trains on images, with the temporal layers left out."""
    ranks: int = 1
    """Share of the ranks that train on this domain, as a whole number beside the other domains' (3 and 1: three
    quarters and one quarter)."""
    batch: int = 1
    """Samples for each rank and step."""
    weight: float = 1.0
    """Of its loss beside the other domains'."""
    count: int = 2560
    """Number of synthetic clips."""
    max_bad: float = 0.01
    """Share of samples that may be unreadable; more stop the run."""


@dataclass(frozen=True)
class Loss:
    """What is learned. The noise schedule is the network config's."""

    prediction: Literal["epsilon", "v_prediction"] | None = None
    """What the network predicts; by default what the checkpoint says."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that its last step is noise alone (arXiv 2305.08891); needs v_prediction."""
    min_snr_gamma: float | None = None
    """Weights of Min-SNR (arXiv 2303.09556), for instance 5; none by default."""
    offset_noise: float = 0.0
    """Strength of a noise that is constant over each frame, for instance 0.1; 0 is none."""
    dropout: Literal["independent", "released"] = "independent"
    """independent: each sample keeps all with 0.1, drops all with 0.1, else drops each condition with 0.5; released:
    the released code's draw of a count for the whole batch, which biases it."""
    text_dropout: float | None = None
    """Stage 1: share of samples without their text, for guidance; none in stage 2, whose dropout drops text too."""
    lone_motion: float = 0.0
    """Share of samples whose only sequence is motion, beyond the paper's rule; see `training.objective`."""
    moving_gain: float = 0.0
    """How much more moving content counts, see `training.objective.moving_weight`."""


@dataclass(frozen=True)
class Optimizer:
    """AdamW, or Muon for small networks from scratch."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw: fused; muon: see `training.muon`."""
    learning_rate: float = 5e-5
    """Of the spatial layers and all that is not temporal."""
    temporal_learning_rate: float | None = None
    """Of the temporal layers and the STC-encoders; by default the same."""
    weight_decay: float = 0.01
    """Decoupled."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    accumulate: int = 1
    """Batches of each rank whose gradients are summed for one step."""
    warmup: int = 1000
    """Steps over which the learning rate rises from 0."""
    decay: Literal["cosine", "constant"] = "cosine"
    """How the learning rate falls after the warm-up: to `final_rate` by a cosine, or not at all."""
    final_rate: float = 0.1
    """Factor of the learning rate at the end."""
    ema: float = 0.9999
    """Decay of the averaged weights; 0 keeps none."""


@dataclass(frozen=True)
class Train:
    """What of the network is trained."""

    what: Literal["all", "temporal", "stc", "lora"] = "all"
    """all; temporal: the temporal layers; stc: the STC-encoders; lora: low-rank changes of the linear layers."""
    lora_rank: int = 16
    """Rank of the LoRA's matrices."""
    lora_alpha: float | None = None
    """Scale of the LoRA times its rank; by default the rank."""
    lora_on: tuple[str, ...] = ("spatial.block", "temporal.block")
    """Parts of module names whose linear layers get a LoRA; one that matches nothing is an error."""


@dataclass(frozen=True)
class Engine:
    """How the work is spread and kept."""

    parallel: Literal["ddp", "fsdp2", "hsdp"] = "ddp"
    """ddp: a copy on every rank; fsdp2: sharded over all; hsdp: sharded within nodes, copied among them."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Type of the computation; weights stay in fp32."""
    checkpointing: bool = False
    """Recompute activations in the backward pass."""
    compile: bool = False
    """Run the network through torch.compile."""
    device: str = "auto"
    """auto, cpu or cuda."""
    keep: int = 3
    """Checkpoints that are kept, the last ones."""
    save_every: int = 1000
    """Steps between checkpoints."""


@dataclass(frozen=True)
class Watch:
    """What is shown of the run."""

    log_every: int = 20
    """Steps between lines of the log and of tensorboard."""
    validate_every: int = 0
    """Steps between validation videos; 0 makes none."""
    prompts: tuple[str, ...] = ()
    """Texts of the validation videos."""
    seeds: tuple[int, ...] = (0,)
    """Of the validation videos."""


@dataclass(frozen=True)
class Recipe:
    """A whole run."""

    out: Path = Path("runs/run")
    """Folder of the run: checkpoints, logs, validation videos."""
    stage: Literal[1, 2] = 2
    """1: text to video; 2: compositional."""
    steps: int = 268_000
    """Of the optimizer, after which the run is over."""
    seed: int = 0
    """Everything random in a step is a function of the seed and the sample's number."""
    height: int = 256
    """Of the videos, in pixels."""
    width: int = 256
    """Of the videos, in pixels."""
    start: Start = field(default_factory=Start)
    data: tuple[Domain, ...] = (Domain(),)
    """One domain, or several that share the ranks: a quarter of images beside video is the paper's."""
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    train: Train = field(default_factory=Train)
    engine: Engine = field(default_factory=Engine)
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        if self.height % 8 or self.width % 8 or min(self.height, self.width) < 8:
            raise UserError(f"The recipe's size {self.width}x{self.height} is not possible: expected multiples of 8.")
        if self.start.kind != "scratch" and self.start.checkpoint is None:
            raise UserError(f"The recipe starts from {self.start.kind}: give start.checkpoint, the file of it.")
        if self.loss.zero_terminal_snr and self.loss.prediction == "epsilon":
            raise UserError("The recipe's loss.zero_terminal_snr needs loss.prediction v_prediction: noise alone shows "
                            "nothing of itself.")  # fmt: skip


def as_plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe in values that YAML and JSON hold."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(recipe)
