"""Train a network on some ranks, and save it: DDP or FSDP2, precision, one step, checkpoints.

Checkpoints store tensors under the network's own names. So a checkpoint that eight sharded ranks wrote can be read by
one rank, or by three copies.
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
from training.rounding import RoundedAdamW, in_full, store_in_bf16
from training.start import parameter_groups
from vc_core.disk import make_folder, writing
from vc_core.errors import UserError, shorten
from vc_core.model.unet import UNet3D
from vc_core.parsing import parse_json

LossOf = Callable[[Batch], tuple[Tensor, Tensor]]
"""Returns the loss and the timestep of each sample of a batch, both `(B,)`."""


class _Loss(nn.Module):
    """The loss as the forward of one module, which DDP and FSDP2 require."""

    def __init__(self, unet: UNet3D, loss_of: LossOf):
        super().__init__()
        self.unet = unet
        self._loss_of = (loss_of,)  # in a tuple, so that frozen encoders are not registered as submodules
        inside = {id(p) for block in unet.blocks() for p in block.parameters()}
        self._outside = [name for name, p in unet.named_parameters() if p.requires_grad and id(p) not in inside]

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        losses, timesteps = self._loss_of[0](batch)
        # An STC-encoder that no sample of this rank uses still needs a gradient, of zeros, because every rank must
        # join the same collectives. Look up the parameters here, because FSDP2 gathers them for this forward. Those of
        # the blocks are always used, see `training.step.leave_out_for_images`.
        unused = [self.unet.get_parameter(name).flatten()[0] for name in self._outside]
        loss = losses.mean() + (0.0 * torch.stack(unused).sum() if unused else 0.0)
        return loss, losses.detach(), timesteps


def rate(step: int, steps: int, settings: Optimizer) -> float:
    """Return the learning rate's factor in a step: a linear warm-up, then a cosine to `final_rate`, or constant."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.decay == "constant":
        return 1.0
    return falling((step - settings.warmup) / max(steps - settings.warmup, 1), settings.final_rate)


class Learner:
    """A network in training on some ranks: `update` learns from batches, `save` and `load` store and restore it.

    Args:
        unet: has its initial weights, equal on all ranks, on the CPU; parameters to train require gradients.
        loss_of: computes the loss with this same `unet`.

    Attributes:
        trained: what the optimizer changes, by its name in the network: the network's parameters, or with
            `engine.offload` fp32 copies on the CPU. Under FSDP2 each rank has a shard of them.
        average: running averages of `trained`; empty without EMA.
    """

    def __init__(self, unet: UNet3D, loss_of: LossOf, recipe: Recipe, world: World):
        self.unet, self.recipe, self.world, self.steps = unet, recipe, world, 0
        engine, settings = recipe.engine, recipe.optimizer
        exact = {n: nn.Parameter(p.detach().clone()) for n, p in _trained(unet).items()} if engine.offload else {}
        if engine.weights == "bf16":
            store_in_bf16(unet)
        self.model = self._spread(_Loss(unet, loss_of))
        # Not before `_spread`, because FSDP2 replaces the parameters that it shards.
        self._inside = _trained(unet)
        self.trained = exact or self._inside
        self._rounding = torch.Generator(world.device)
        optimizer = partial(torch.optim.AdamW, fused=True)
        if settings.kind == "muon":
            optimizer = Muon
        elif any(parameter.dtype == torch.bfloat16 for parameter in self.trained.values()):
            optimizer = partial(RoundedAdamW, generator=self._rounding)
        groups = parameter_groups(self.trained, recipe)
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
        # Autocast as under DDP. Weights are gathered in bfloat16, gradients are summed in float32. Inputs are not
        # cast, because a batch is not a tensor.
        types = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if self.mixed else {}
        policy = MixedPrecisionPolicy(**types, cast_forward_inputs=False)
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        return fully_shard(module, mesh=mesh, mp_policy=policy)

    @property
    def rates_now(self) -> dict[str, float]:
        """Learning rate of each group in the last step."""
        return {group["name"]: group["lr"] for group in self.optimizer.param_groups}

    @property
    def mixed(self) -> bool:
        """Whether it computes in bf16."""
        precision, device = self.recipe.engine.precision, self.world.device
        if self.recipe.engine.weights == "bf16":
            return True
        if precision == "auto":
            return fast_type(device) == torch.bfloat16
        return precision == "bf16" and device.type == "cuda"

    def update(self, batches: Sequence[tuple[Lane, Batch]]) -> tuple[dict[str, float], list[tuple[Tensor, Tensor]]]:
        """Make one optimizer step. Every rank must pass the same number of batches, at least one for each of its lanes.

        A domain's loss is the mean over all of its batches on all ranks. The step's loss is the mean of the domains'
        losses, by their weights, and does not depend on how many ranks a domain has.

        Returns the norms of the gradient before clipping, of each group and `all`; and for each batch the losses and
        timesteps of its samples, detached. Raises `UserError` if the gradient is not finite; then nothing is changed.
        """
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        outcomes = []
        counts = [sum(lane.domain == d for lane, _ in batches) for d in range(len(self.recipe.data))]
        for i, (lane, batch) in enumerate(batches):
            # So that dropout inside the network depends only on the recipe and the sample.
            torch.manual_seed(self.recipe.seed * 1_000_003 + batch.numbers[0])
            with self._synced(i == len(batches) - 1):
                with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.mixed):
                    loss, *outcome = self.model(batch)
                (loss * (self._weight(lane) / counts[lane.domain])).backward()
            outcomes.append(tuple(outcome))
        if self.recipe.engine.offload:
            for name, parameter in self._inside.items():
                self.trained[name].grad, parameter.grad = parameter.grad.to("cpu", self.trained[name].dtype), None
        norms = self._clip()
        if not math.isfinite(norms["all"]):
            raise UserError(
                f"The gradient is not finite in step {self.steps}. Continue from the last checkpoint with a smaller "
                "optimizer.learning_rate, or with engine.precision fp32."
            )
        factor = rate(self.steps, self.recipe.steps, self.recipe.optimizer)
        for group, base in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = base * factor
        self._rounding.manual_seed(self.recipe.seed * 1_000_003 + self.steps)  # equal on all ranks
        self.optimizer.step()
        step = None if self.recipe.distils else self.steps  # a target network has the same decay in every step
        if self.average:
            averages, weights = list(self.average.values()), list(self.trained.values())
            follow(averages, weights, self.recipe.optimizer.ema, step, self._rounding)
        self._refresh()
        self.steps += 1
        return norms, outcomes

    def _weight(self, lane: Lane) -> float:
        """Return the loss weight of a batch. Gradients are averaged over all ranks, so few ranks need more weight."""
        data = self.recipe.data
        return data[lane.domain].weight / sum(d.weight for d in data) * self.world.size / lane.ranks

    def _synced(self, last: bool) -> AbstractContextManager:
        """Exchange gradients only with the last batch of a step."""
        if isinstance(self.model, nn.parallel.DistributedDataParallel):
            return nullcontext() if last else self.model.no_sync()
        if self.world.size > 1:
            self.model.set_requires_gradient_sync(last)
        return nullcontext()

    @torch.no_grad()
    def _refresh(self) -> None:
        """Copy offloaded weights into the network, and free their gradients."""
        if self.recipe.engine.offload:
            self.optimizer.zero_grad(set_to_none=True)
            for name, parameter in self._inside.items():
                parameter.copy_(self.trained[name])

    def _clip(self) -> dict[str, float]:
        """Clip the norm of the gradients to `clip`. Returns the norms before clipping."""
        groups = self.optimizer.param_groups
        each = [torch.stack(torch._foreach_norm([p.grad for p in group["params"]])) for group in groups]
        squares = torch.stack([_full(norms).square().sum() for norms in each])
        total = squares.sum().sqrt()
        nn.utils.clip_grads_with_norm_(self.trained.values(), self.recipe.optimizer.clip, total)
        return dict(zip([*self.rates_now, "all"], [*squares.sqrt().tolist(), float(total)], strict=True))

    def weights(self, average: bool = True) -> dict[str, Tensor]:
        """Return all weights of the network, or their averages if there are any, on the CPU; empty except on the main
        rank. All ranks must call this."""
        tensors = {}
        for name, parameter in self.unet.named_parameters():
            tensor = self.trained.get(name, parameter)
            tensor = _full(self.average.get(name, tensor) if average else tensor).detach()
            if self.world.main:
                tensors[name] = in_full(tensor).cpu().clone()
        return tensors

    # --- Saving -----------------------------------------------------------------------------------------------------

    def save(self, out: Path, state: Mapping[str, Any]) -> Path:
        """Write `out/checkpoints/step-N` with weights, averages, the optimizer, the recipe and `state` as JSON.

        It is written under a temporary name and renamed; the last `engine.keep` checkpoints are kept. All ranks must
        call this. Raises `UserError` if it cannot be written; no incomplete checkpoint remains.
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
        # In files of about 1 GiB, because a rank keeps a file in memory while it writes it.
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
                os.rename(old, _part_of(old))  # so that a partly removed checkpoint does not count as one
                shutil.rmtree(_part_of(old))
        self.world.wait()
        return folder

    def load(self, folder: Path) -> dict[str, Any]:
        """Continue from a checkpoint that `save` wrote, with any number of ranks and any sharding. Returns its `state`.

        Raises `UserError` if it is damaged, or from another network or recipe; the message names what differs.
        """
        state, shapes = read_state(folder), {name: meta.size for name, meta in _metadata(folder).items()}
        self._start_optimizer()
        tensors = self._tensors()
        wrong = sorted(n for n in tensors.keys() | shapes if n not in tensors or shapes.get(n) != tensors[n].shape)
        if wrong:
            raise UserError(
                f"{folder} is from a run with another network, optimizer or choice of layers: {len(wrong)} tensors "
                f"differ ({shorten(wrong)}). Pass another folder with --out."
            )
        _read(folder, tensors, self.world.size == 1)
        for name, parameter in self.trained.items():
            values = self.optimizer.state[parameter]
            values.update({k: int(tensors[f"optimizer.{name}.{k}"]) for k, v in values.items() if isinstance(v, int)})
        self._refresh()
        self.steps = state["step"]
        return state

    def _tensors(self) -> dict[str, Tensor]:
        """Return all tensors of a checkpoint. They share memory with the run, so that loading into them restores it."""
        tensors = {f"weights.{name}": parameter.detach() for name, parameter in self.trained.items()}
        tensors |= {f"average.{name}": mean for name, mean in self.average.items()}
        for name, parameter in self.trained.items():
            for key, value in self.optimizer.state[parameter].items():
                value = value if isinstance(value, Tensor) else torch.tensor(value)
                # The step count is a scalar, the same on all ranks.
                tensors[f"optimizer.{name}.{key}"] = value if value.dim() else value.view(1)
        return tensors

    def _start_optimizer(self) -> None:
        """Create the optimizer's tensors, with a step that changes nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        for parameter in self.trained.values():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def checkpoints(out: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    paths = (path for path in (Path(out) / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name))
    return sorted(paths, key=lambda path: int(path.name[5:]))


def step_folder(out: Path, step: int) -> Path:
    """Return the folder of a run's checkpoint of a step."""
    return Path(out) / "checkpoints" / f"step-{step:08d}"


def remove_remains(out: Path) -> None:
    """Remove incomplete checkpoints: those whose writing or removal was interrupted."""
    for part in (Path(out) / "checkpoints").glob(_part_of(Path("step-*")).name):
        shutil.rmtree(part)


def read_state(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's `state.json`: `step`, and the trainer's own entries. Raises `UserError`."""
    try:
        return parse_json((Path(folder) / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is not a checkpoint of a run ({error}). Remove it to continue from the previous checkpoint, or "
            "pass another folder."
        ) from error


def read_weights(folder: Path, average: bool = True) -> dict[str, Tensor]:
    """Return the trained weights of a checkpoint, or their averages if it has any, by name, unsharded.

    Layers that were not trained (see `train.what`) are not in a checkpoint; they are those that the run started from.
    """
    stored = _metadata(folder)
    kind = "average." if average and any(name.startswith("average.") for name in stored) else "weights."
    tensors = {
        name: torch.empty(meta.size, dtype=meta.properties.dtype)
        for name, meta in stored.items()
        if name.startswith(kind)
    }
    _read(folder, tensors, True)
    return {name.removeprefix(kind): in_full(tensor) for name, tensor in tensors.items()}


def _read(folder: Path, tensors: dict[str, Tensor], alone: bool) -> None:
    """Read a checkpoint into tensors."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    with _plainly():
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)


def _metadata(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Return sizes and types of a checkpoint's tensors. Raises `UserError`."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    try:
        return HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:
        raise UserError(
            f"{folder} is damaged ({type(error).__name__}: {error}). Remove it to continue from the previous "
            "checkpoint."
        ) from error


def _trained(unet: UNet3D) -> dict[str, nn.Parameter]:
    return {name: p for name, p in unet.named_parameters() if p.requires_grad}


def _part_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def _plainly() -> Iterator[None]:
    """Silence the warning of torch.distributed.checkpoint about a single process, and unwrap its own exception, which
    is not even an `Exception`."""
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:
            first, _ = next(iter(error.failures.values()))
            raise first from error
