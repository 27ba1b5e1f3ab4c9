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
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from training.data.sample import Batch
from training.muon import Muon, falling, follow
from training.precision import fast_type
from training.ranks import Lane, World
from training.recipe import Optimizer, Recipe, as_plain
from training.start import parameter_groups
from vc_core.disk import make_folder, writing
from vc_core.errors import UserError, shorten
from vc_core.model.unet import UNet3D
from vc_core.parsing import parse_json

LossOf = Callable[[Batch], tuple[Tensor, Tensor]]
"""From a batch to the loss and the timestep of each sample, both `(B,)`."""


class _Loss(nn.Module):
    """The loss as the forward of one module, as DDP and FSDP2 want it."""

    def __init__(self, unet: UNet3D, loss_of: LossOf):
        super().__init__()
        self.unet = unet
        self._loss_of = (loss_of,)  # in a tuple, so that frozen encoders do not count as parts of this module
        inside = {id(p) for block in unet.blocks() for p in block.parameters()}
        self._outside = [name for name, p in unet.named_parameters() if p.requires_grad and id(p) not in inside]

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        losses, timesteps = self._loss_of[0](batch)
        # An STC-encoder that no sample of this rank keeps has a gradient all the same, of zeros: every rank takes part
        # in the same collectives. Parameters are looked up now, as FSDP2 gathers them for this forward; those of the
        # blocks are always used, see `training.step.leave_out_for_images`.
        nothing = [self.unet.get_parameter(name).flatten()[0] for name in self._outside]
        loss = losses.mean() + (0.0 * torch.stack(nothing).sum() if nothing else 0.0)
        return loss, losses.detach(), timesteps


def rate(step: int, steps: int, settings: Optimizer) -> float:
    """The learning rate's factor in a step: a linear warm-up, then a cosine to `final_rate`, or constant."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.decay == "constant":
        return 1.0
    return falling((step - settings.warmup) / max(steps - settings.warmup, 1), settings.final_rate)


class Learner:
    """A network in training on some ranks: `update` learns from batches, `save` and `load` keep all of it.

    Args:
        unet: with its initial weights, equal on all ranks, on the CPU; what trains requires gradients.
        loss_of: computed with this very `unet`.

    Attributes:
        trained: parameters by their names in the network; under FSDP2 each rank has a shard of them.
        average: of `trained` over the steps that were made; empty without EMA.
    """

    def __init__(self, unet: UNet3D, loss_of: LossOf, recipe: Recipe, world: World):
        self.unet, self.recipe, self.world, self.steps = unet, recipe, world, 0
        self.model = self._spread(_Loss(unet, loss_of))
        # Asked for now, as FSDP2 puts other parameters in the place of those that it shards.
        self.trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        settings, groups = recipe.optimizer, parameter_groups(unet, recipe)
        optimizer = Muon if settings.kind == "muon" else partial(torch.optim.AdamW, fused=True)
        self.optimizer = optimizer(groups, betas=settings.betas, weight_decay=settings.weight_decay)
        self.rates = [group["lr"] for group in groups]
        self.average = {name: p.detach().clone() for name, p in self.trained.items()} if settings.ema > 0 else {}

    def _spread(self, module: _Loss) -> nn.Module:
        settings, world = self.recipe.engine, self.world
        module.unet.recompute = settings.checkpointing
        blocks = module.unet.blocks()
        if settings.compile:
            for block in blocks:
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
        # Computation is autocast as under DDP. Weights are gathered in its type, gradients are summed in float32.
        # Nothing is cast on the way in: a batch is no tensor.
        types = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if self.mixed else {}
        policy = MixedPrecisionPolicy(**types, cast_forward_inputs=False)
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        return fully_shard(module, mesh=mesh, mp_policy=policy)

    @property
    def rates_now(self) -> dict[str, float]:
        """The learning rate of each group in the last step."""
        return {group["name"]: group["lr"] for group in self.optimizer.param_groups}

    @property
    def mixed(self) -> bool:
        """Whether it computes in bf16."""
        wanted, device = self.recipe.engine.precision, self.world.device
        return fast_type(device) == torch.bfloat16 if wanted == "auto" else wanted == "bf16" and device.type == "cuda"

    def update(self, batches: Sequence[tuple[Lane, Batch]]) -> tuple[dict[str, float], list[tuple[Tensor, Tensor]]]:
        """One step of the optimizer. The same number of batches on every rank, at least one of each of its lanes.

        Each domain's loss is its mean over all of its batches on all ranks, and the step's loss the mean of the
        domains' by their weights: how many ranks a domain has changes nothing of what it counts.

        Returns norms of the gradient before it is clipped, of each group and `all`; and of each batch its samples'
        losses and timesteps, without their graph. Raises `UserError` where the gradient is not finite; nothing is
        changed then.
        """
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        outcomes = []
        counts = [sum(lane.domain == d for lane, _ in batches) for d in range(len(self.recipe.data))]
        for i, (lane, batch) in enumerate(batches):
            # What dropout in the network draws is a function of the recipe and the sample too.
            torch.manual_seed(self.recipe.seed * 1_000_003 + batch.numbers[0])
            with self._synced(i == len(batches) - 1):
                with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.mixed):
                    loss, *outcome = self.model(batch)
                (loss * (self._weight(lane) / counts[lane.domain])).backward()
            outcomes.append(tuple(outcome))
        norms = self._clip()
        if not math.isfinite(norms["all"]):
            raise UserError(
                f"The gradient is not finite in step {self.steps}: go on from the last checkpoint with a smaller "
                "optimizer.learning_rate, or with engine.precision fp32."
            )
        factor = rate(self.steps, self.recipe.steps, self.recipe.optimizer)
        for group, base in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = base * factor
        self.optimizer.step()
        follow(list(self.average.values()), list(self.trained.values()), self.recipe.optimizer.ema, self.steps)
        self.steps += 1
        return norms, outcomes

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

    def _clip(self) -> dict[str, float]:
        """Makes the gradients no larger than `clip`. Returns their norms before."""
        groups = self.optimizer.param_groups
        each = [torch.stack(torch._foreach_norm([p.grad for p in group["params"]])) for group in groups]
        squares = torch.stack([_whole(norms).square().sum() for norms in each])
        total = squares.sum().sqrt()
        nn.utils.clip_grads_with_norm_(self.trained.values(), self.recipe.optimizer.clip, total)
        return dict(zip([*self.rates_now, "all"], [*squares.sqrt().tolist(), float(total)], strict=True))

    def weights(self, average: bool = True) -> dict[str, Tensor]:
        """The whole network's weights, or their averages where they are kept, on the CPU; empty but on the main rank.
        All ranks take part."""
        tensors = {}
        for name, parameter in self.unet.named_parameters():
            whole = _whole(self.average.get(name, parameter) if average else parameter).detach()
            if self.world.main:
                tensors[name] = whole.cpu().clone()
        return tensors

    # --- Keeping ----------------------------------------------------------------------------------------------------

    def save(self, out: Path, state: Mapping[str, Any]) -> Path:
        """Writes `out/checkpoints/step-N` with weights, averages, the optimizer, the recipe and `state` of JSON.

        It is written beside and renamed, and the last `engine.keep` are kept. All ranks take part. Raises `UserError`
        where it cannot be written; nothing half-written stays.
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
        # In files of a GiB each: a rank holds one in memory while it writes it.
        ends = accumulate(t.numel() * t.element_size() for t in tensors.values())
        files = {name: 1 + end // 2**30 for name, end in zip(tensors, ends, strict=True)}
        writer = HuggingFaceStorageWriter(str(part), files, save_distributed=True)
        try:
            with writing(folder):
                with _plainly():
                    save(tensors, storage_writer=writer, no_dist=self.world.size == 1)
                self.world.wait()
                if self.world.main:
                    with open(part / "state.json", "w", encoding="utf-8") as file:
                        json.dump({"step": self.steps, "recipe": as_plain(self.recipe), **state}, file, indent=1)
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

        Raises `UserError` for one that is damaged, or of another network or recipe; it names what does not fit.
        """
        state, shapes = read_state(folder), {name: meta.size for name, meta in _held(folder).items()}
        self._start_optimizer()
        tensors = self._tensors()
        wrong = sorted(n for n in tensors.keys() | shapes if n not in tensors or shapes.get(n) != tensors[n].shape)
        if wrong:
            raise UserError(
                f"{folder} is of another network, optimizer or choice of what is trained: {len(wrong)} tensors differ "
                f"({shorten(wrong)}); give another folder with --out."
            )
        _read(folder, tensors, self.world.size == 1)
        for name, parameter in self.trained.items():
            kept = self.optimizer.state[parameter]
            kept.update({k: int(tensors[f"optimizer.{name}.{k}"]) for k, v in kept.items() if isinstance(v, int)})
        self.steps = state["step"]
        return state

    def _tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, in the memory where it lives: loading into these loads the run."""
        tensors = {f"weights.{name}": parameter.detach() for name, parameter in self.trained.items()}
        tensors |= {f"average.{name}": mean for name, mean in self.average.items()}
        for name, parameter in self.trained.items():
            for key, value in self.optimizer.state[parameter].items():
                value = value if isinstance(value, Tensor) else torch.tensor(value)
                # How many steps were made is one number, the same on all ranks.
                tensors[f"optimizer.{name}.{key}"] = value if value.dim() else value.view(1)
        return tensors

    def _start_optimizer(self) -> None:
        """Makes the optimizer's tensors, by a step that changes nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        for parameter in self.trained.values():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def checkpoints(out: Path) -> list[Path]:
    """The whole checkpoints of a run, the last one last."""
    found = (path for path in (Path(out) / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name))
    return sorted(found, key=lambda path: int(path.name[5:]))


def step_folder(out: Path, step: int) -> Path:
    """Where a run's checkpoint of a step is."""
    return Path(out) / "checkpoints" / f"step-{step:08d}"


def remove_remains(out: Path) -> None:
    """Removes checkpoints of a run that were interrupted while they were written or removed."""
    for part in (Path(out) / "checkpoints").glob(_part_of(Path("step-*")).name):
        shutil.rmtree(part)


def read_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint's `state.json` says: `step`, and what the trainer keeps. Raises `UserError`."""
    try:
        return parse_json((Path(folder) / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is no checkpoint of a run ({error}): remove it to go on from the one before, or name another."
        ) from error


def read_weights(folder: Path, average: bool = True) -> dict[str, Tensor]:
    """The trained weights of a checkpoint, or their averages where it has them, whole and by their names.

    What was not trained (see `train.what`) is not in a checkpoint: it is what the run started from.
    """
    held = _held(folder)
    kind = "average." if average and any(name.startswith("average.") for name in held) else "weights."
    tensors = {n: torch.empty(meta.size, dtype=meta.properties.dtype) for n, meta in held.items() if n.startswith(kind)}
    _read(folder, tensors, True)
    return {name.removeprefix(kind): tensor for name, tensor in tensors.items()}


def _read(folder: Path, tensors: dict[str, Tensor], alone: bool) -> None:
    """Reads a checkpoint into tensors."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    with _plainly():
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)


def _held(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Sizes and types of a checkpoint's tensors. Raises `UserError`."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    try:
        return HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:
        raise UserError(
            f"{folder} is damaged ({type(error).__name__}: {error}): remove it to go on from the one before."
        ) from error


def _part_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def _plainly() -> Iterator[None]:
    """Without torch.distributed.checkpoint's warning of every run that is a single process, and without the exception
    of its own, not even an `Exception`, that it wraps others in."""
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            first, _ = next(iter(error.failures.values()))
            raise first from error
