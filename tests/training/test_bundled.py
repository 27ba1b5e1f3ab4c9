"""The bundled checkpoint's command: its time budget, its ring of scenes, its runs from start to file."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from training import export
from training.bundled import export as files
from training.bundled.__main__ import main, used
from training.bundled.design import PARTS, RECIPE, budget, keep_design, read_design
from training.bundled.network import NetworkStep, keep_best
from training.bundled.ring import Ring, windows
from training.bundled.student import CHANGED, StudentStep
from training.bundled.student import train as train_student
from training.bundled.towers import SIZES
from training.lora import add_lora, lora_layers
from training.muon import Muon
from training.precision import MOST, SMALL, attend_in_full, attend_split
from training.ranks import World
from training.timed import TimedRun, rate
from vc_core.checkpoint.files import save_pickled
from vc_core.checkpoint.inspection import knows_scenes_only
from vc_core.checkpoint.loading import load_autoencoder, load_unet
from vc_core.checkpoint.lora import UP, is_distilled
from vc_core.checkpoint.reading import BUNDLED, read_checkpoint, save_checkpoint
from vc_core.composer import VideoComposer
from vc_core.conditions import CONDITIONS
from vc_core.encoders.autoencoder import new_autoencoder
from vc_core.encoders.clip import encode_text, new_towers
from vc_core.errors import UserError
from vc_core.model.blocks import attend
from vc_core.model.unet import UNet3D


@pytest.fixture(scope="module")
def design():
    return read_design()


@pytest.fixture(scope="module")
def ring():
    torch.manual_seed(0)
    ring = Ring(
        load_autoencoder(read_checkpoint(BUNDLED).part("vae")),
        new_towers(SIZES).eval(),
        seed=1,
        capacity=6,
        scale=4,
    )
    ring.draw(4)
    return ring


# --- Budget and design ----------------------------------------------------------------------------------------------


def test_a_budget_is_divided_and_the_network_gets_the_rest(design):
    minutes = budget(design[0], 10.0, {}, set())
    assert sum(minutes.values()) == pytest.approx(10.0) and set(minutes) == set(PARTS)
    assert minutes["autoencoder"] == pytest.approx(10 * design[0].shares["autoencoder"])
    large = budget(design[0], 1e4, {}, set())
    assert large["autoencoder"] == design[0].most_minutes["autoencoder"] and large["network"] > 9000
    # A complete part keeps the minutes that it used, however large the budget becomes. The student gets its share.
    again = budget(design[0], 100.0, {"autoencoder": 3.0, "towers": 1.0, "network": 6.0}, {"autoencoder", "towers"})
    assert again == {"autoencoder": 3.0, "towers": 1.0, "network": 86.0, "student": 10.0}


def test_the_message_for_a_small_budget_says_how_much_is_enough(design):
    with pytest.raises(UserError, match=r"--minutes 0.5 is too short .* Use --minutes 1 or more"):
        budget(design[0], 0.5, {}, set())
    with pytest.raises(
        UserError, match=r"5 is too short to continue, because the run has already used 20.0 minutes\. Use --minutes 2"
    ):
        budget(design[0], 5.0, {"autoencoder": 6.0, "towers": 2.0, "network": 12.0}, {"autoencoder", "towers"})


def test_the_same_command_again_tolerates_the_last_steps_overrun(design):
    used = {"autoencoder": 3.02, "towers": 1.01, "network": 5.03, "student": 1.02}
    assert budget(design[0], 10.0, used, {"autoencoder", "towers"})["network"] == pytest.approx(4.95)


def test_a_run_with_another_design_is_an_error(design, tmp_path):
    keep_design(tmp_path, *design)
    keep_design(tmp_path, *design)
    other = replace(design[0], network=replace(design[0].network, learning_rate=1e-3))
    with pytest.raises(UserError, match=r"another design: network.learning_rate is 0.0015 there, but 0.001 now"):
        keep_design(tmp_path, other, design[1])
    with pytest.raises(UserError, match=r"config.guidance is .* Pass another folder"):
        keep_design(tmp_path, design[0], replace(design[1], guidance=3.5))
    # The division of time, and the student, which is another file.
    student = replace(design[0].student, rank=4)
    keep_design(tmp_path, replace(design[0], shares={"autoencoder": 0.2, "towers": 0.2}, student=student), design[1])


def test_a_design_with_unknown_keys_is_an_error(tmp_path):
    (tmp_path / "small.json").write_text(RECIPE.with_name("small.json").read_text())
    (tmp_path / "d.json").write_text(json.dumps(json.loads(RECIPE.read_text()) | {"networks": {}}))
    with pytest.raises(UserError, match=r"Unknown recipe key networks\. Did you mean network"):
        read_design(tmp_path / "d.json")
    with pytest.raises(UserError, match=r"Cannot read .*missing\.json as a design"):
        read_design(tmp_path / "missing.json")
    (tmp_path / "e.json").write_text(
        json.dumps({k: v for k, v in json.loads(RECIPE.read_text()).items() if k != "shares"})
    )
    with pytest.raises(UserError, match=r"Cannot read .*e\.json as a design .*shares"):
        read_design(tmp_path / "e.json")


# --- Scenes ---------------------------------------------------------------------------------------------------------


def test_a_ring_replaces_its_oldest_scenes_by_new_ones():
    ring = Ring(new_autoencoder().eval(), new_towers(SIZES).eval(), 1, capacity=3, size=32, scale=4)
    ring.draw(2)
    frames = torch.arange(16)[None]

    def depth(ring: Ring, *clips: int) -> Tensor:
        return ring.take("depth", torch.tensor(clips), frames)

    first = depth(ring, 0, 1)
    ring.draw(2)
    assert len(ring) == 3 and ring.drawn == 4
    stored = depth(ring, 0, 1, 2)
    assert torch.equal(stored[1], first[1]) and not torch.equal(stored[0], first[0])
    # Two ranks use the scenes of one, each a half of them. A resumed rank continues with new scenes.
    options = {"size": 32, "scale": 4, "capacity": 4}
    halves = [Ring(ring.autoencoder, ring.towers, 1, rank=rank, ranks=2, **options) for rank in (0, 1)]
    for half in halves:
        half.draw(1)
    assert torch.equal(depth(halves[0], 0), first[:1])
    assert torch.equal(depth(halves[1], 0), first[1:])
    resumed = Ring(ring.autoencoder, ring.towers, 1, start=3, **options)
    resumed.draw(1)
    assert torch.equal(depth(resumed, 0)[0], stored[0])


def test_windows_are_inside_the_clip():
    generator = torch.Generator().manual_seed(0)
    frames, stride = windows(16, 4, 500, generator=generator)
    assert frames.shape == (500, 4) and frames.min() == 0 and frames.max() == 15
    assert set(stride.tolist()) == {1, 2, 3, 4, 5}
    assert torch.equal(frames[:, 1:] - frames[:, :-1], stride[:, None].expand(-1, 3))
    assert torch.equal(windows(16, 16, 3, generator=generator)[0], torch.arange(16).expand(3, -1))


def test_a_step_passes_kept_conditions_to_the_network(ring, design):
    shapes = {}

    class Spy(UNet3D):
        def encode_condition(self, name, tensor, size):
            shapes[name] = tensor.shape
            return super().encode_condition(name, tensor, size)

    torch.manual_seed(0)
    unet = Spy(design[1].unet, attend=attend_in_full)
    empty = encode_text(ring.towers, [""]).float()
    step = NetworkStep(unet, design[1], design[0].network, empty)

    def loss_of() -> Tensor:
        inputs = step.draw(len(ring), 12, torch.Generator().manual_seed(3))
        return step(ring, 8, inputs, torch.Generator().manual_seed(3))

    loss = loss_of()
    assert loss.isfinite() and set(shapes) == set(CONDITIONS)
    for name, (count, channels, frames, height, width) in shapes.items():
        assert 0 < count < 12 and (height, width) == (32, 32)
        assert channels == CONDITIONS[name].channels
        assert frames == (8 if CONDITIONS[name].kind == "temporal" else 1)
    assert torch.equal(loss_of(), loss)  # all random values come from the two generators


# --- The student ----------------------------------------------------------------------------------------------------


@pytest.fixture
def networks(design):
    """Student, teacher and target, with different weights."""
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(UNet3D(design[1].unet, attend=attend_in_full).eval())
        nn.init.normal_(networks[-1].conv_out.weight, std=0.02)  # it starts at zero
    return networks


def test_a_students_step_compares_it_with_the_target_after_the_teachers_guided_step(
    ring, design, networks, monkeypatch
):
    student, teacher, target = networks
    empty = encode_text(ring.towers, [""]).float()
    step = StudentStep(student, teacher, target, 0.7, design[1], design[0].network, empty)
    inputs = step.draw(len(ring), 3, torch.Generator().manual_seed(3))
    assert inputs["text"].all()  # a student samples without guidance
    inputs["style"] = torch.tensor([True, False, True])
    latents, text, style, stc = step.encoded(ring, 4, inputs, torch.Generator().manual_seed(5))
    encoded = latents, 50 * text, style, stc  # so that guidance matters in a network with random weights
    monkeypatch.setattr(step, "encoded", lambda *_: encoded)
    loss = step(ring, 4, inputs, torch.Generator().manual_seed(7))

    latents, text, style, stc = encoded
    generator = torch.Generator().manual_seed(7)
    grid = torch.arange(19, 1000, 20)
    timesteps = grid[(step.spread(3, generator) * 50).long()]
    alphas = design[1].diffusion.alphas_cumprod.float()[timesteps].view(-1, 1, 1, 1, 1)
    noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * torch.randn(latents.shape, generator=generator)
    style = torch.where(torch.tensor([True, False, True])[:, None, None], style, 0.0)
    cond = torch.cat([text, student.encode_style(style)], dim=1)
    uncond = torch.cat([empty.expand_as(text), student.encode_style(torch.zeros_like(style))], dim=1)
    with_all, without = (teacher(noisy, timesteps, context, stc) for context in (cond, uncond))
    consistency, below = step.consistency, (timesteps - 20).clamp(min=0)
    earlier = consistency.stepped(noisy, with_all + 0.7 * (with_all - without), timesteps, below)
    expected = consistency.losses(
        consistency.result(noisy, student(noisy, timesteps, cond, stc), timesteps),
        consistency.result(earlier, target(earlier, below, cond, stc), below),
        latents, design[0].network.moving_gain,
    )  # fmt: skip
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-4, atol=1e-6)


def test_a_student_is_a_small_lora_of_all_linear_layers_that_do_not_encode_conditions(design, tmp_path):
    with torch.device("meta"):
        unet = UNet3D(design[1].unet)
    add_lora(unet, design[0].student.rank, None, CHANGED)
    linear = {name for name, module in unet.named_modules() if isinstance(module, nn.Linear) and "lora_" not in name}
    assert {name for name in linear if not name.startswith(("stc.", "style_"))} == {*lora_layers(unet)}
    numel = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    assert 2 * numel < 6_000_000  # bytes in half precision


def test_a_student_is_resumed_and_starts_again_if_its_teacher_was_trained_further(ring, design, networks, tmp_path):
    few = {"cpu": 2, "cuda": 2}
    plan = replace(design[0].network, lengths=(4,), scenes={"cpu": 4, "cuda": 4})
    plan = replace(design[0], network=plan, student=replace(design[0].student, batch=few))

    def trained(minutes: float, step: int) -> TimedRun:
        teacher = SimpleNamespace(average=networks[0].requires_grad_(False), step=step)
        return train_student(tmp_path, minutes, design[1], plan, ring.autoencoder, ring.towers, World(), teacher)

    at_least_one_step = 1e-6
    first = trained(at_least_one_step, 5)
    assert first.step == 1
    resumed = trained((first.used + 0.1) / 60, 5)
    assert resumed.step > 1 and resumed.used > first.used
    assert trained(at_least_one_step, 5).step == resumed.step  # its time is over
    again = trained(at_least_one_step, 6)
    assert (again.step, again.more["teacher"]) == (1, 6)


def test_attention_in_full_is_attention():
    q, k, v = torch.randn(3, 2, 10, 32).unbind()
    torch.testing.assert_close(attend_in_full(q, k, v, 4), attend(q, k, v, 4), atol=1e-5, rtol=1e-5)
    many = torch.randn(MOST + 3, 2, 4)
    assert torch.equal(attend_split(many, many, many, 1), attend(many, many, many, 1))
    long = torch.randn(1, int(SMALL**0.5) + 1, 4)
    assert torch.equal(attend_in_full(long, long, long, 1), attend(long, long, long, 1))


# --- Timed runs -----------------------------------------------------------------------------------------------------


def test_the_rate_is_constant_until_its_last_part():
    assert rate(0.0) < 0.05 and rate(0.02) == rate(0.4) == rate(0.7) == 1.0
    assert 1.0 > rate(0.8) > rate(0.9) > rate(1.0) == pytest.approx(0.02)


def test_a_signal_saves_the_run_and_ends_it(tmp_path):
    def start() -> TimedRun:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return TimedRun(tmp_path, model, Muon(model.parameters()), minutes=5.0)

    run = start()
    for step in run:
        run.update(run.model(torch.ones(2, 3)).square().mean())
        run.more["drawn"] = 10 * step
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
    assert run.came == signal.SIGTERM and run.step in (3, 4)  # at the latest in the step after it
    again = start()
    assert (again.step, again.used, again.more) == (run.step, run.used, run.more)
    for before, after in ((run.model, again.model), (run.average, again.average)):
        assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
    momenta = [[state["momentum"] for state in r.optimizer.state.values() if "momentum" in state] for r in (run, again)]
    assert momenta[0] and all(map(torch.equal, *momenta))


def test_a_run_that_diverges_returns_to_its_best_weights_and_reports_it(tmp_path):
    torch.manual_seed(0)
    run = TimedRun(tmp_path, nn.Linear(2, 1), Muon(nn.Linear(2, 1).parameters()), minutes=1.0)
    best = {name: tensor.clone() for name, tensor in run.average.state_dict().items()}
    keep_best(run, 0.2)
    with torch.no_grad():
        for tensor in (*run.model.parameters(), *run.average.parameters()):
            tensor.add_(50.0)
    keep_best(run, 0.4)  # worse, but not diverged
    (parameter,) = (p for p in run.optimizer.param_groups[0]["params"] if p.dim() == 2)
    run.optimizer.state[parameter]["momentum"] = torch.full_like(parameter, float("nan"))
    run._norm = torch.tensor(float("nan"))
    with pytest.raises(UserError, match=r"has diverged: its held-out loss was 0.2 at best, and is nan now"):
        keep_best(run, float("nan"))
    again = TimedRun(tmp_path, nn.Linear(2, 1), Muon(nn.Linear(2, 1).parameters()), minutes=1.0)
    for model in (again.model, again.average):
        assert all(torch.equal(tensor, best[name]) for name, tensor in model.state_dict().items())
    assert again.more["best"] == 0.2 and not again.optimizer.state


def test_a_full_disk_pauses_the_run_and_loses_nothing(tmp_path, monkeypatch):
    messages, times = [], []
    model = nn.Linear(2, 1)
    run = TimedRun(tmp_path, model, Muon(model.parameters()), minutes=1.0, say=messages.append)
    remaining = [2]

    def full(state, path):
        if remaining[0]:
            remaining[0] -= 1
            path.write_bytes(bytes(10))
            raise OSError(errno.ENOSPC, "No space left on device")
        return save_pickled(state, path)

    monkeypatch.setattr("training.timed.save_pickled", full)
    monkeypatch.setattr("training.timed.time.sleep", times.append)
    run.step = 7
    run.save()
    assert len(times) == 2 and len(messages) == 1 and "disk" in messages[0] and "full" in messages[0]
    assert TimedRun(tmp_path, model, Muon(model.parameters()), minutes=1.0).step == 7
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]

    def denied(*_):
        raise OSError(errno.EACCES, "denied")

    monkeypatch.setattr("training.timed.save_pickled", denied)
    with pytest.raises(UserError, match="denied"):  # waiting would not help
        run.save()


def test_a_log_on_a_full_disk_has_complete_lines_and_waiting_is_not_training_time(tmp_path, monkeypatch):
    model = nn.Linear(2, 1)
    run = TimedRun(tmp_path, model, Muon(model.parameters()), minutes=1.0, say=lambda _: None)
    run.log(loss=1.0)
    full = [True]

    class Half(io.FileIO):
        def write(self, data):
            if full.pop() if full else False:
                super().write(data[:9])
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr("builtins.open", lambda path, mode, **_: Half(path, mode))
    clock = [100.0]
    monkeypatch.setattr("training.timed.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("training.timed.time.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    run._mark = 95.0
    run.log(loss=0.5)
    monkeypatch.undo()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [1.0, 0.5]
    assert run._mark == 110.0


# --- Files ----------------------------------------------------------------------------------------------------------


def test_pieces_are_small_and_join_to_the_same_file(tmp_path):
    pieces = files.split(BUNDLED, tmp_path / "pieces")
    assert len(pieces) > 1 and all(path.stat().st_size <= 16_000_000 for path in pieces)
    files.export_run(tmp_path / "pieces", tmp_path / "whole.safetensors")
    bundled, joined = read_checkpoint(BUNDLED), read_checkpoint(tmp_path / "whole.safetensors")
    assert joined.config == bundled.config and joined.training == bundled.training
    for name, part in bundled.parts.items():
        state = joined.part(name).tensors.state()
        assert all(torch.equal(tensor, state[key]) for key, tensor in part.tensors.state().items())
    assert export.main([str(tmp_path / "pieces"), "-o", str(tmp_path / "raw.safetensors"), "--raw"]) == 2
    assert export.main([str(tmp_path / "pieces"), "-o", str(tmp_path / "again.safetensors")]) == 0
    pieces[0].unlink()
    with pytest.raises(UserError, match=r"Expected \d pieces of one checkpoint in .*, but it contains \d pieces?"):
        files.export_run(tmp_path / "pieces", tmp_path / "again.safetensors")
    with pytest.raises(UserError, match="contains neither a run nor pieces"):
        files.export_run(tmp_path, tmp_path / "again.safetensors")


# --- The command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Options of a run with parts of the real sizes, without measuring them."""
    plain = json.loads(RECIPE.read_text())
    plain["config"] = str(RECIPE.with_name(plain["config"]))
    for part in PARTS:
        plain[part]["batch"] = {"cpu": 2, "cuda": 2}
    plain["network"]["scenes"] = {"cpu": 4, "cuda": 4}
    (tmp_path / "tiny.json").write_text(json.dumps(plain | {"least_minutes": 0.0}))
    for measure in ("autoencoder.evaluate", "autoencoder.recognition", "towers.evaluate"):
        monkeypatch.setattr(f"training.bundled.{measure}", lambda *_: {})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return ["--design", str(tmp_path / "tiny.json"), "--device", "cpu", "--no-evaluation", "--ranks"]


@pytest.mark.parametrize("ranks", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_run_from_scratch_continues_with_a_larger_budget_and_from_its_file(tiny, tmp_path, capsys, ranks):
    run, other = tmp_path / "run", tmp_path / "other"
    assert main([*tiny, "1", "--out", str(run), "--minutes", "0.02"]) == 0
    file = run / files.CHECKPOINT
    checkpoint = read_checkpoint(file)
    assert set(checkpoint.parts) == {"model", "vae", "text", "image"} and file.stat().st_size <= 40_000_000
    assert checkpoint.config.extraction.condition_scale == 4 and knows_scenes_only(checkpoint)
    assert all(path.stat().st_size <= 16_000_000 for path in (run / files.PIECES).iterdir())
    first = json.loads(checkpoint.training)["step"]
    assert is_distilled(run / files.STUDENT) and (run / files.STUDENT).stat().st_size < 6_000_000
    assert VideoComposer.load(file, loras={run / files.STUDENT: 1.0}).config.sampler == "lcm"
    weights = safetensors.torch.load_file(run / files.STUDENT)
    assert any(tensor.any() for name, tensor in weights.items() if name.endswith(UP))  # it has learned
    average = torch.load(run / "network" / "state.pt", weights_only=True)["average"]["conv_out.bias"]
    assert torch.equal(checkpoint.part("model").tensors.state()["out.2.bias"], average.half())
    before = (run / "autoencoder" / "autoencoder.safetensors").stat().st_mtime_ns

    # Complete parts stay, and the network continues, on the same or more ranks.
    state = torch.load(run / "network" / "state.pt", weights_only=True)
    minutes = (sum(used(run).values()) + state["used"] / 60) / 0.9 + 0.02  # the student gets a tenth
    assert main([*tiny, ranks, "--out", str(run), "--minutes", str(minutes)]) == 0
    assert (run / "autoencoder" / "autoencoder.safetensors").stat().st_mtime_ns == before
    last = json.loads(read_checkpoint(file).training)["step"]
    assert torch.load(run / "student" / "state.pt", weights_only=True)["more"]["teacher"] == last > first

    # Only from the file, without the folder.
    assert main([*tiny, "1", "--out", str(other), "--minutes", "0.01", "--start", str(file)]) == 0
    states = [read_checkpoint(path / files.CHECKPOINT).part("vae").tensors.state() for path in (run, other)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert load_unet(read_checkpoint(other / files.CHECKPOINT)) is not None
    capsys.readouterr()

    assert main(["--out", str(run), "--minutes", "5", "--device", "cpu"]) == 2  # the real design
    assert "has another design" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    assert main([*tiny, "1", "--out", str(tmp_path / "full"), "--minutes", "1"]) == 2
    assert "contains other files. Use another --out" in capsys.readouterr().err
    bundled = read_checkpoint(BUNDLED)
    config = replace(bundled.config, extraction=replace(bundled.config.extraction, condition_scale=8))
    other_design = tmp_path / "other design.safetensors"
    save_checkpoint(other_design, config, {name: part.tensors.state() for name, part in bundled.parts.items()})
    assert main([*tiny, "1", "--out", str(tmp_path / "new"), "--minutes", "1", "--start", str(other_design)]) == 2
    assert "has another design. Leave out --start" in capsys.readouterr().err


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ("tyro", "pydantic", "yaml", "av", "kornia", "tensorboard"):
            return None
        frame = sys._getframe(1)
        while "importlib" in frame.f_globals.get("__name__", ""):
            frame = frame.f_back
        # Imports by diffusers and open_clip themselves are allowed.
        if frame.f_globals.get("__name__", "").partition(".")[0] not in ("training", "vc_core", "__main__"):
            return None
        raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from training.bundled.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_design_is_read_with_few_packages(repository):
    """Without pydantic nothing is checked, but lists still become tuples."""
    read = (
        "from training.bundled.design import read_design\n"
        "design, config = read_design()\n"
        "print(type(design.network.lengths), type(config.unet.multipliers), 'pydantic' in sys.modules)"
    )
    code = BLOCKED.replace("sys.exit(main(sys.argv[1:]))", read)
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=repository)
    assert done.stdout == "<class 'tuple'> <class 'tuple'> False\n", done.stderr


@pytest.mark.slow
def test_a_minute_of_the_real_design_with_few_packages(repository, tmp_path):
    options = ["--out", str(tmp_path / "run"), "--minutes", "1", "--device", "cpu", "--ranks", "1"]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    environment.pop("ONEDNN_MAX_CPU_ISA", None)  # as a user's machine has it, see conftest.py
    command = [sys.executable, "-c", BLOCKED, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr
    assert "not evaluated, because PyAV is not installed" in done.stdout
    log = [json.loads(line) for line in (tmp_path / "run" / "autoencoder" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["psnr"] > log[0]["psnr"]
    assert read_checkpoint(tmp_path / "run" / files.CHECKPOINT).part("model")
