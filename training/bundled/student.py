"""The bundled checkpoint's student for four steps: a LoRA that consistency distillation trains, see
`training.consistency`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.bundled.design import Design
from training.bundled.network import LOG_EVERY, NetworkStep, length_of, make_supply
from training.bundled.ring import Ring
from training.consistency import Consistency
from training.data.synthetic.scenes import CLIP_FRAMES
from training.lora import add_lora, save_lora
from training.objective import make_context
from training.precision import fast_type
from training.ranks import World
from training.recipe import Distillation
from training.timed import TimedRun
from vc_core.checkpoint.lora import FEW_STEPS
from vc_core.checkpoint.reading import TRAINING
from vc_core.config import Config
from vc_core.encoders.clip import encode_text
from vc_core.model.unet import UNet3D

SEED = 5678
"""Of its scenes."""
CHANGED = ("spatial.", "temporal.block", "temporal.proj", "temporal_in.", "time_in", "time_out", "time_proj")
"""Parts of the names of the layers with a LoRA: all linear layers but those that encode the conditions."""
DECAY = 0.95
"""Of the target network, as in VGen's training."""


class StudentStep(NetworkStep):
    """Computes the consistency loss of a batch of scenes from a ring. The student's conditions are encoded by the
    teacher's layers, because they have no LoRA.

    Args:
        student, teacher, target: networks of this config. The target is the student's average.
        guidance: of the teacher, as w in cond + w * (cond - uncond).
        others: of `NetworkStep`, after its network.
    """

    def __init__(self, student: UNet3D, teacher: UNet3D, target: UNet3D, guidance: float, config: Config, *others: Any):
        super().__init__(student, config, *others)
        self.teacher, self.target, self.guidance = teacher, target, guidance
        self.consistency = Consistency(config.diffusion, Distillation().huber)

    def draw(self, scenes: int, batch: int, lots: torch.Generator) -> dict[str, Tensor]:
        """See `NetworkStep.draw`. All samples keep the text: a student samples without guidance, so always with it."""
        inputs = super().draw(scenes, batch, lots)
        return {**inputs, "text": torch.ones_like(inputs["text"])}

    def __call__(
        self, ring: Ring, frames: int, inputs: Mapping[str, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the loss of clips of `frames` frames. For the arguments see `NetworkStep.encoded`."""
        consistency = self.consistency
        with torch.no_grad():
            latents, text, style, stc = self.encoded(ring, frames, inputs, generator)
            context = make_context(self.unet, text, self.empty, style, inputs)
            neither = dict.fromkeys(("text", "style"), torch.zeros_like(inputs["text"]))
            without = make_context(self.unet, text, self.empty, style, neither)
        grid = len(consistency.grid)
        index = (self.spread(len(latents), generator) * grid).long().clamp(max=grid - 1)
        timesteps, below = (t.to(latents.device) for t in consistency.pair(index.cpu()))
        signal, sigma = consistency.amplitudes(timesteps)
        noisy = signal * latents + sigma * torch.randn(latents.shape, device=latents.device, generator=generator)

        result = consistency.result(noisy, self.unet(noisy, timesteps, context, stc), timesteps)
        with torch.no_grad():
            both = torch.cat([noisy, noisy]), torch.cat([timesteps, timesteps]), torch.cat([context, without])
            cond, uncond = self.teacher(*both, torch.cat([stc, stc])).float().chunk(2)
            earlier = consistency.stepped(noisy, cond + self.guidance * (cond - uncond), timesteps, below)
            target = consistency.result(earlier, self.target(earlier, below, context, stc), below)
        return consistency.losses(result, target, latents, self.plan.moving_gain).mean()


def train(
    out: Path,
    minutes: float,
    config: Config,
    design: Design,
    autoencoder: Any,
    towers: Any,
    world: World,
    teacher: TimedRun,
    say: Callable[[str], None] = print,
) -> TimedRun:
    """Train for `minutes`, or continue the run in `out`. A run whose teacher has been trained further starts again.

    Args:
        autoencoder, towers: frozen, on the device.
        teacher: the network's run.
    """
    device, plan = world.device, design.student

    def started() -> TimedRun:
        torch.manual_seed(0)  # the same LoRA on all ranks
        student = copy.deepcopy(teacher.average)
        add_lora(student, plan.rank, None, CHANGED)
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, plan.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
        return TimedRun(out, student.train(), optimizer, minutes, decay=DECAY, world=world, say=say)

    run = started()
    if run.more.get("teacher", teacher.step) != teacher.step:
        world.wait()  # until all ranks have read the state
        run.forget()
        world.wait()
        run = started()
    run.more["teacher"] = teacher.step

    per_rank = max(plan.batch[device.type] // world.size, 1)
    supply = make_supply(run, per_rank, SEED, config, design.network, (autoencoder, towers), world)
    ring, empty = supply.ring, encode_text(towers, [""]).float()
    networks = run.model, teacher.average, run.average
    student_step = StudentStep(*networks, plan.guidance, config, design.network, empty)
    generator, lots = torch.Generator(device), torch.Generator()
    dtype = fast_type(device)
    for step in run:
        supply.keep_up()
        frames = length_of(design.network, step)
        seed = step * world.size + world.rank
        drawn_inputs = student_step.draw(len(ring), per_rank * CLIP_FRAMES // frames, lots.manual_seed(seed))
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in drawn_inputs.items()}
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = student_step(ring, frames, inputs, generator.manual_seed(seed))
        norm = run.update(loss)
        if step % LOG_EVERY == LOG_EVERY - 1:
            run.log(loss=round(loss.item(), 6), gradient=round(norm.item(), 5), scenes=ring.drawn * world.size)
    return run


def save_student(run: TimedRun, path: Path) -> None:
    """Write the averaged LoRA of a run, in half precision, with metadata that says what it is for."""
    training = {"step": run.step, "minutes": round(run.used / 60, 1), "weights": "averaged"}
    save_lora(path, run.average, {TRAINING: json.dumps(training), FEW_STEPS: "yes"}, torch.float16)
