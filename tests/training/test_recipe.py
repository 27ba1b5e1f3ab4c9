"""Recipes: files and options are read into dataclasses; wrong keys and values are errors that name them."""

import dataclasses
import os
from pathlib import Path

import pytest

from training.recipe import Recipe, as_plain, from_plain, read_recipe
from vc_core.checkpoint.reading import BUNDLED
from vc_core.errors import UserError


@pytest.fixture
def write(tmp_path):
    def writes(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return writes


def test_a_file_overrides_the_defaults_and_options_override_the_file(write):
    path = write("steps: 7\ndata:\n  - {frames: 8}\n  - {frames: 1, weight: 0.5}\noptimizer: {learning_rate: 1e-4}\n")
    recipe = read_recipe(path, ["--data.1.batch", "3", "--engine.compile", "--loss.min-snr-gamma", "5"])
    assert (recipe.steps, recipe.height) == (7, Recipe().height)
    assert [(d.frames, d.batch, d.weight) for d in recipe.data] == [(8, 1, 1.0), (1, 3, 0.5)]
    assert recipe.optimizer.learning_rate == 1e-4  # YAML reads it as a string
    assert recipe.engine.compile and recipe.loss.min_snr_gamma == 5.0


def test_a_recipe_survives_being_written():
    recipe = from_plain({"data": [{"lengths": [4, 8]}, {"frames": 1}], "start": {"parts": ["a", "b"]}})
    assert from_plain(as_plain(recipe)) == recipe


def test_files_are_searched_in_the_recipes_folder_and_bundled_is_the_bundled_checkpoint(write, tmp_path):
    (tmp_path / "net.json").write_text("{}")
    path = write("out: net.json\nstart: {network: net.json, parts: [bundled, elsewhere.safetensors]}\n")
    recipe = read_recipe(path)
    assert recipe.start.network == tmp_path / "net.json"
    assert [str(part) for part in recipe.start.parts] == [str(BUNDLED), "elsewhere.safetensors"]
    assert str(recipe.out) == "net.json"  # is written, not read
    assert read_recipe(path, ["--start.parts", "bundled"]).start.parts == (BUNDLED,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimiser: {}", r"Unknown recipe key optimiser\. Did you mean optimizer"),
        ("data:\n  - {fames: 3}", r"Unknown recipe key data\.0\.fames\. Did you mean frames"),
        ("optimizer: 3", r"optimizer is 3\. Expected keys and values"),
        ("- 1", r"The recipe is \[1\]"),
        ("optimizer: {betas: [1]}", "Expected a list of 2 items, each a number"),
        ("optimizer: {clip: 0}", r"optimizer\.clip is 0.*\. Expected 1e-09 or more"),
        ("optimizer: {learning_rate: fast}", r"learning_rate is 'fast'\. Expected a number"),
        ("optimizer: {learning_rate: nan}", r"learning_rate is nan"),
        ("optimizer: {betas: [0.9, 1.5]}", r"betas is \(0\.9, 1\.5\)\. Expected 0 or more and below 1"),
        ("train: {lora_alpha: -1}", r"lora_alpha is -1"),
        ("data:\n  - {batch: 0}", r"data\.0\.batch is 0\. Expected 1 or more"),
        ("data: []", "no domain"),
        ("engine: {keep: true}", r"engine\.keep is True\. Expected an integer"),
        ("engine: {compile: 1}", "Expected true or false"),
        ("stage: 3", "Expected one of 1, 2"),
        ("height: 100", "multiples of 8"),
        ("start: {kind: modelscope}", r"Set start\.checkpoint"),
        ("engine: {parallel: fsdp2}\noptimizer: {kind: muon}", "muon, which requires complete matrices"),
        (
            "data:\n  - {without: [text, dept]}",
            r"data\.0\.without contains dept\. Expected some of text, style, motion",
        ),
        ("out: [", "not valid YAML"),
    ],
)
def test_wrong_recipes_are_errors_that_name_the_key(write, text, message):
    with pytest.raises(UserError, match=message) as raised:
        read_recipe(write(text))
    assert "recipe.yaml" in str(raised.value)


def test_a_missing_file_and_unknown_options_are_errors(write, tmp_path, capsys):
    with pytest.raises(UserError, match="Cannot read the recipe"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(SystemExit) as ended:
        read_recipe(write(""), ["--optimizer.momentum", "1"])
    assert ended.value.code == 2
    assert "--optimizer.momentum" in capsys.readouterr().err


def test_help_shows_every_field_with_a_description(write, capsys):
    with pytest.raises(SystemExit) as ended:
        read_recipe(write("data:\n  - {}"), ["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())

    def check(kind, where):
        for f in dataclasses.fields(kind):
            inner = f.default_factory if f.default_factory is not dataclasses.MISSING else None
            if f.name == "data":
                check(type(f.default[0]), "data.0.")
            elif dataclasses.is_dataclass(inner):
                check(inner, f"{f.name}.")
            else:
                option = f"--{where}{f.name}".replace("_", "-")
                at = text.index(option)
                described = text[at : at + 1500].split("(default:")[0].removeprefix(option)
                assert len(described.split()) > 1, option

    check(Recipe, "")


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("shards", "rate", "8"),
        ("shards", "nominal-height", "336"),
        ("shards", "captions", "others.csv"),
        ("shards", "count", "7"),
        ("folder", "count", "7"),
        ("synthetic", "rate", "8"),
        ("synthetic", "nominal-height", "336"),
        ("synthetic", "captions", "others.csv"),
    ],
)
def test_settings_of_another_kind_of_data_are_errors(write, kind, field, value):
    path = write(f"data:\n  - {{}}\n  - {{kind: {kind}, path: there}}\n")
    message = rf"data\.1\.{field.replace('-', '_')} works only with kind .*, but data\.1\.kind is {kind}\. Remove it"
    with pytest.raises(UserError, match=message):
        read_recipe(path, [f"--data.1.{field}", value])
    default = {"count": "2560"}.get(field, "None")
    assert read_recipe(path, [f"--data.1.{field}", default]).data[1].kind == kind  # as the message says
    text = f"data: [{{}}, {{kind: {kind}, path: there, {field.replace('-', '_')}: {default.replace('None', 'null')}}}]"
    assert read_recipe(write(text)).data[1].kind == kind


def test_a_recipe_for_a_folder_works_with_shards(repository):
    for name in ("finetune", "lora"):
        path = repository / "training" / "recipes" / f"{name}.yaml"
        (domain,) = read_recipe(path, ["--data.0.kind", "shards", "--data.0.path", "data/videos"]).data
        assert (domain.kind, str(domain.path)) == ("shards", "data/videos")
    folder = read_recipe(path, ["--data.0.rate", "8", "--data.0.nominal-height", "336", "--data.0.captions", "a.csv"])
    assert (folder.data[0].rate, folder.data[0].nominal_height) == (8, 336)


@pytest.mark.parametrize(
    "name", ["stage1", "stage2", "finetune", "lora", "lcm", "lcm_small", "synthetic", "synthetic_quick"]
)
def test_the_recipes_can_be_read(repository, name):
    recipe = read_recipe(repository / "training" / "recipes" / f"{name}.yaml")
    assert recipe.out.name == name
    steps = {"stage1": 132_000, "stage2": 268_000}
    assert recipe.steps == steps.get(name, recipe.steps)
    if name in steps:
        assert [(d.frames, d.ranks) for d in recipe.data] == [(16, 3), (1, 1)]
        assert recipe.stage == int(name[-1])
    if name.startswith("synthetic"):
        assert recipe.start.network.is_file() and recipe.start.parts == (BUNDLED,)


LAUGHS = "a0: &k0 [x, x]\n" + "".join(f"a{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 10)}]\n" for i in range(1, 9))
LONG, KEY = "x" * 20_000, "x" * 1000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS + "out: *k8\n", "more than 65536 values"),
        ("a0: &k0 [x, x]\n", "Unknown recipe key a0"),
        ("out: &a [1, *a]", "an alias contains itself"),
        ("[" * 5000, "deeper than 64 levels"),
        (f"out: [{LONG}, {LONG}]", "Recipe key out is"),
        (f"{KEY}: 1", "Unknown recipe key xxx"),
        (f"start: {{{KEY}: 1}}", "Unknown recipe key start.xxx"),
        (f"start: {{kind: {LONG}}}", "start.kind is 'xxx"),
        (f"loss: {{lone: {{{KEY}: 1}}}}", "loss.lone contains xxx"),
        (f"data: [{{without: [{LONG}, {LONG}]}}]", "data.0.without contains xxx"),
        ("steps: 0x" + "f" * 10_000, "steps is an int of 40000 bits"),
        ("loss: {offset_noise: 0x" + "f" * 10_000 + "}", "offset_noise is an int of"),
        ("steps: 2026-99-99", "not valid YAML"),
    ],
    ids=range(13),
)
def test_a_malicious_recipe_gives_a_short_message(tmp_path, text, says):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=says) as raised:
        read_recipe(tmp_path / "recipe.yaml")
    assert len(str(raised.value)) < 1000 and str(raised.value).isprintable()


def test_yaml_with_aliases_is_read(tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: [&one {kind: synthetic, count: 8}, {<<: *one, count: 9}, *one]\n")
    assert [domain.count for domain in read_recipe(tmp_path / "recipe.yaml").data] == [8, 9, 8]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_a_recipe(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.yaml")
    monkeypatch.setattr(Path, "read_text", lambda path, **options: pytest.fail("reading it would block"))
    with pytest.raises(UserError, match=r"Cannot read the recipe .*pipe\.yaml \(it is a pipe or a device"):
        read_recipe(tmp_path / "pipe.yaml")
