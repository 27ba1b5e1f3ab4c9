"""How a network learns on some ranks, and how it is kept: DDP or FSDP2, precision, one step, checkpoints.

Everything that is kept is tensors under the network's own names, so a checkpoint that eight sharded ranks wrote is read
by one, or by three copies.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from training.data.sample import Batch
from training.muon import Muon
from training.parameters import parameter_groups
from training.precision import fast_type
from training.ranks import Lane, World
from training.recipe import Optimizer, Recipe
from vc_core.disk import make_folder, writing
from vc_core.errors import UserError
from vc_core.layouts import shorten
from vc_core.model.unet import UNet3D
from vc_core.parsing import parse_json

# --- One step of learning -------------------------------------------------------------------------------------------


class Outcome(Protocol):
    """What a step tells of a batch: the mean loss, and of each sample its loss and timestep, `(B,)`."""

    loss: Tensor
    losses: Tensor
    timesteps: Tensor


@dataclass(frozen=True)
class Told:
    """An outcome for the log, without its graph; `frames` are of each sample."""

    domain: int
    frames: int
    losses: Tensor
    timesteps: Tensor


class _Loss(nn.Module):
    """The loss as the forward of one module, as DDP and FSDP2 want it."""

    def __init__(self, unet: UNet3D, step: Callable[[Batch], Outcome]):
        super().__init__()
        self.unet = unet
        self._step = (step,)  # in a tuple, so that frozen encoders do not count as parts of this module
        inside = {id(p) for block in blocks_of(unet) for p in block.parameters()}
        self._outside = [name for name, p in unet.named_parameters() if p.requires_grad and id(p) not in inside]

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        outcome = self._step[0](batch)
        # An STC-encoder that no sample of this rank keeps has a gradient all the same, of zeros: every rank takes part
        # in the same collectives. Parameters are looked up now, as FSDP2 gathers them for this forward; those of the
        # blocks are always used, see `training.images`.
        nothing = [self.unet.get_parameter(name).flatten()[0] for name in self._outside]
        loss = outcome.loss + (0.0 * torch.stack(nothing).sum() if nothing else 0.0)
        return loss, outcome.losses.detach(), outcome.timesteps


def blocks_of(unet: UNet3D) -> list[nn.Module]:
    """The units that are sharded, recomputed and compiled."""
    return [*unet.encoder, unet.middle, unet.middle_out, *unet.decoder]


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same, whose activations are computed again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    def again(*arguments: Any) -> Any:  # a function of ours: torch.compile sees nothing of a partial of torch's
        return checkpoint(forward, *arguments, use_reentrant=False)

    return again


def rate(step: int, steps: int, settings: Optimizer) -> float:
    """The learning rate's factor in a step: a linear warm-up, then a cosine to `final_rate`, or constant."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.decay == "constant":
        return 1.0
    phase = min((step - settings.warmup) / max(steps - settings.warmup, 1), 1.0)
    return settings.final_rate + (1.0 - settings.final_rate) * 0.5 * (1.0 + math.cos(math.pi * phase))


class Engine:
    """A network in training on some ranks: `update` learns from batches, `save` and `load` keep all of it.

    Args:
        unet: with its initial weights, equal on all ranks, on the CPU; what trains requires gradients (see
            `training.parameters.choose_parameters`).
        step: a batch's loss, computed with this very `unet`.

    Attributes:
        trained: parameters by their names in the network.
        own: what this rank has of them: under FSDP2 a shard, else the parameter itself. Optimizer, clipping and
            averages work on these, for which they are plain tensors.
        average: of `own` over the steps; empty without EMA.
        steps: that were made.
    """

    def __init__(self, unet: UNet3D, step: Callable[[Batch], Outcome], recipe: Recipe, world: World):
        self.unet, self.recipe, self.world, self.steps = unet, recipe, world, 0
        self.shards: dist.ProcessGroup | None = None
        self.model = self._spread(_Loss(unet, step))
        # Asked for now, as FSDP2 puts other parameters in the place of those that it shards.
        self.trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        self.own = {name: _own(parameter) for name, parameter in self.trained.items()}
        of = {id(parameter): self.own[name] for name, parameter in self.trained.items()}
        self.groups = [{**g, "params": [of[id(p)] for p in g["params"]]} for g in parameter_groups(unet, recipe)]
        self.optimizer = self._optimizer()
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        keeps_average = recipe.optimizer.ema > 0
        self.average = {name: p.detach().clone() for name, p in self.own.items()} if keeps_average else {}

    def _spread(self, module: _Loss) -> nn.Module:
        settings, world = self.recipe.engine, self.world
        for block in blocks_of(module.unet):
            if settings.checkpointing:
                block.forward = _recomputed(block.forward)
            if settings.compile:
                block.compile()
        if world.size == 1 or settings.parallel == "ddp":
            module.to(world.device)
            if world.size == 1:
                return module
            return nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)

        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        sizes = {"fsdp2": (world.size,), "hsdp": (world.size // world.local_size, world.local_size)}[settings.parallel]
        mesh = init_device_mesh(world.device.type, sizes, mesh_dim_names=("copies", "shards")[-len(sizes) :])
        self.shards = mesh.get_group("shards")
        # Computation is autocast as under DDP. Weights are gathered in its type, gradients are summed in float32.
        # Nothing is cast on the way in: a batch is no tensor.
        types = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if self.mixed else {}
        policy = MixedPrecisionPolicy(**types, cast_forward_inputs=False)
        for block in blocks_of(module.unet):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        return fully_shard(module, mesh=mesh, mp_policy=policy)

    def _optimizer(self) -> torch.optim.Optimizer:
        settings = self.recipe.optimizer
        if settings.kind == "muon":
            return Muon(self.groups, betas=settings.betas, weight_decay=settings.weight_decay)
        return torch.optim.AdamW(self.groups, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)

    @property
    def rates_now(self) -> dict[str, float]:
        """The learning rate of each group in the last step."""
        return {group["name"]: group["lr"] for group in self.optimizer.param_groups}

    @property
    def mixed(self) -> bool:
        """Whether it computes in bf16."""
        wanted, device = self.recipe.engine.precision, self.world.device
        return fast_type(device) == torch.bfloat16 if wanted == "auto" else wanted == "bf16" and device.type == "cuda"

    def update(self, batches: Sequence[tuple[Lane, Batch]]) -> tuple[dict[str, float], list[Told]]:
        """One step of the optimizer. The same number of batches on every rank, at least one of each of its lanes.

        Each domain's loss is its mean over all of its batches on all ranks, and the step's loss the mean of the
        domains' by their weights: how many ranks a domain has changes nothing of what it counts.

        Returns:
            Norms of the gradient before it is clipped, of each group and `all`; and what to log of the samples.

        Raises:
            UserError: the gradient is not finite; nothing is changed then.
        """
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        told = []
        counts = [sum(lane.domain == d for lane, _ in batches) for d in range(len(self.recipe.data))]
        for i, (lane, batch) in enumerate(batches):
            # What dropout in the network draws is a function of the recipe and the sample too.
            torch.manual_seed(self.recipe.seed * 1_000_003 + batch.numbers[0])
            with self._synced(i == len(batches) - 1):
                with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.mixed):
                    loss, losses, timesteps = self.model(batch)
                (loss * (self._weight(lane) / counts[lane.domain])).backward()
            told.append(Told(lane.domain, batch.frames, losses, timesteps))
        norms = self._clip()
        if not math.isfinite(norms["all"]):
            raise UserError(f"The gradient is not finite in step {self.steps}: go on from the last checkpoint with a "
                            "smaller optimizer.learning_rate, or with engine.precision fp32.")  # fmt: skip
        factor = rate(self.steps, self.recipe.steps, self.recipe.optimizer)
        for group, base in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = base * factor
        self.optimizer.step()
        self._take_average()
        self.steps += 1
        return norms, told

    def _weight(self, lane: Lane) -> float:
        """What a batch of a lane counts. Gradients are averaged over all ranks, so a domain's few count for more."""
        data = self.recipe.data
        return data[lane.domain].weight / sum(d.weight for d in data) * self.world.size / lane.ranks

    def _synced(self, last: bool) -> AbstractContextManager:
        """Gradients are exchanged with the last batch of a step only."""
        if isinstance(self.model, nn.parallel.DistributedDataParallel):
            return nullcontext() if last else self.model.no_sync()
        if self.world.size > 1:
            self.model.set_requires_gradient_sync(last)
        return nullcontext()

    @torch.no_grad()
    def _clip(self) -> dict[str, float]:
        """Brings the gradients to `own`, no larger than `clip`. Returns their norms before."""
        for name, parameter in self.trained.items():
            self.own[name].grad = _local(parameter.grad)
        squares = torch.stack([_square([p.grad for p in group["params"]]) for group in self.groups])
        if self.shards is not None:
            dist.all_reduce(squares, group=self.shards)
        total = squares.sum().sqrt()
        nn.utils.clip_grads_with_norm_(self.own.values(), self.recipe.optimizer.clip, total)
        norms = [*squares.sqrt().tolist(), float(total)]
        return dict(zip([*(group["name"] for group in self.groups), "all"], norms, strict=True))

    @torch.no_grad()
    def _take_average(self) -> None:
        decay = min(self.recipe.optimizer.ema, (1 + self.steps) / (10 + self.steps))
        if self.average:
            torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.own.values()], 1.0 - decay)

    def weights(self, average: bool = True) -> dict[str, Tensor]:
        """The whole network's weights, or their averages where they are kept, on the CPU; empty but on the main rank.

        All ranks take part.
        """
        tensors = {}
        for name, parameter in self.unet.named_parameters():
            own = self.average.get(name) if average else None
            whole = (parameter if own is None else _shared(own, parameter)).detach()
            whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
            if self.world.main:
                tensors[name] = whole.cpu().clone()
        return tensors

    # --- Keeping ----------------------------------------------------------------------------------------------------

    def save(self, out: Path, state: Mapping[str, Any]) -> Path:
        """Writes `out/checkpoints/step-N` with weights, averages, the optimizer and `state`, values of JSON.

        It is written beside and renamed, and the last `engine.keep` are kept. All ranks take part.

        Raises:
            UserError: it cannot be written; nothing half-written stays.
        """
        from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

        folder = step_folder(out, self.steps)
        part = _part_of(folder)
        if folder.exists():
            return folder
        if self.world.main:
            shutil.rmtree(part, ignore_errors=True)
            make_folder(part)
        self.world.wait()
        tensors = self._tensors()
        writer = HuggingFaceStorageWriter(str(part), _files(tensors), save_distributed=True)
        try:
            with writing(folder):
                with _quiet(), _first_failure():
                    save(tensors, storage_writer=writer, no_dist=self.world.size == 1)
                self.world.wait()
                if self.world.main:
                    with open(part / "state.json", "w", encoding="utf-8") as file:
                        json.dump({"step": self.steps, **state}, file, indent=1)
                        file.flush()
                        os.fsync(file.fileno())
                    os.rename(part, folder)
        except BaseException:
            if self.world.main:
                shutil.rmtree(part, ignore_errors=True)
            raise
        if self.world.main:
            for old in checkpoints(out)[: -self.recipe.engine.keep]:
                os.rename(old, _part_of(old))  # so that one that is half removed is none
                shutil.rmtree(_part_of(old))
        self.world.wait()
        return folder

    def load(self, folder: Path) -> dict[str, Any]:
        """Goes on from what `save` wrote, whatever the ranks and the sharding were. Returns its `state`.

        Raises:
            UserError: it is damaged, or of another network or recipe; it names what does not fit.
        """
        from torch.distributed.checkpoint import HuggingFaceStorageReader, load

        state, shapes = read_state(folder), {name: meta.size for name, meta in _held(folder).items()}
        self._start_optimizer()
        tensors = self._tensors()
        wrong = sorted(n for n in tensors.keys() | shapes if n not in tensors or shapes.get(n) != tensors[n].shape)
        if wrong:
            raise UserError(f"{folder} is of another network, optimizer or choice of what is trained: {len(wrong)} "
                            f"tensors differ ({shorten(wrong)}); give another folder with --out.")  # fmt: skip
        with _quiet():
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=self.world.size == 1)
        for name, own in self.own.items():
            kept = self.optimizer.state[own]
            kept.update({k: int(tensors[f"optimizer.{name}.{k}"]) for k, v in kept.items() if isinstance(v, int)})
        self.steps = state["step"]
        return state

    def _tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, in the memory where it lives: loading into these loads the run."""
        tensors = {f"weights.{name}": parameter.detach() for name, parameter in self.trained.items()}
        tensors |= {f"average.{name}": _shared(mean, self.trained[name]) for name, mean in self.average.items()}
        for name, own in self.own.items():
            for key, value in self.optimizer.state[own].items():
                value = value if isinstance(value, Tensor) else torch.tensor(value)
                one = value.dim() == 0  # how many steps were made, the same on all ranks
                tensors[f"optimizer.{name}.{key}"] = value.view(1) if one else _shared(value, self.trained[name])
        return tensors

    def _start_optimizer(self) -> None:
        """Makes the optimizer's tensors, by a step that changes nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        for parameter in self.own.values():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def checkpoints(out: Path) -> list[Path]:
    """The whole checkpoints of a run, the last one last."""
    found = {path: re.fullmatch(r"step-(\d+)", path.name) for path in (Path(out) / "checkpoints").glob("step-*")}
    return sorted((path for path, match in found.items() if match), key=lambda path: int(path.name[5:]))


def step_folder(out: Path, step: int) -> Path:
    """Where a run's checkpoint of a step is."""
    return Path(out) / "checkpoints" / f"step-{step:08d}"


def last_step(out: Path) -> int:
    """The step of a run's last checkpoint; 0 without any."""
    return max((int(path.name[5:]) for path in checkpoints(out)), default=0)


def remove_remains(out: Path) -> None:
    """Removes checkpoints of a run that were interrupted while they were written or removed."""
    for part in (Path(out) / "checkpoints").glob(_part_of(Path("step-*")).name):
        shutil.rmtree(part)


def read_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint's `state.json` says: `step`, and what the trainer keeps. Raises `UserError`."""
    try:
        return parse_json((Path(folder) / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no checkpoint of a run ({error}): remove it to go on from the one before, or "
                        "name another.") from error  # fmt: skip


def read_weights(folder: Path, average: bool = True) -> dict[str, Tensor]:
    """The trained weights of a checkpoint, or their averages where it has them, whole and by their names.

    What was not trained (see `train.what`) is not in a checkpoint: it is what the run started from.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    held = _held(folder)
    kind = "average." if average and any(name.startswith("average.") for name in held) else "weights."
    tensors = {n: torch.empty(meta.size, dtype=meta.properties.dtype) for n, meta in held.items() if n.startswith(kind)}
    with _quiet():
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return {name.removeprefix(kind): tensor for name, tensor in tensors.items()}


def _held(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Sizes and types of a checkpoint's tensors. Raises `UserError`."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    try:
        return HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:
        raise UserError(f"{folder} is damaged ({type(error).__name__}: {error}): remove it to go on from the one "
                        "before.") from error  # fmt: skip


_FILE_BYTES = 1 << 30


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """In which of the files each tensor is written. A rank holds one file in memory while it writes it."""
    ends = accumulate(t.numel() * t.element_size() for t in tensors.values())
    return {name: 1 + end // _FILE_BYTES for name, end in zip(tensors, ends, strict=True)}


def _part_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _own(parameter: nn.Parameter) -> nn.Parameter:
    """What this rank has of a parameter, in the same memory."""
    with torch.no_grad():
        return nn.Parameter(parameter.to_local()) if isinstance(parameter, DTensor) else parameter


def _shared(own: Tensor, parameter: nn.Parameter) -> Tensor:
    """What this rank has of a tensor that is sharded as a parameter is, as the whole tensor, in the same memory."""
    if not isinstance(parameter, DTensor):
        return own
    mesh, placements, shape, stride = parameter.device_mesh, parameter.placements, parameter.shape, parameter.stride()
    return DTensor.from_local(own, mesh, placements, run_check=False, shape=shape, stride=stride)


def _square(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of the squares of all numbers."""
    return torch.stack(torch._foreach_norm(tensors)).square().sum()


@contextmanager
def _first_failure() -> Iterator[None]:
    """What torch.distributed.checkpoint wraps in an exception of its own, which is not even an `Exception`."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        first, _ = next(iter(error.failures.values()))
        raise first from error


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.distributed.checkpoint warns of every run that is a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
