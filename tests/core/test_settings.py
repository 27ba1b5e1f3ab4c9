"""Settings: files and options give the same settings; wrong values are refused with the name of the setting."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vc_core.checkpoint.reading import BUNDLED_LORA
from vc_core.commands.checks import check_settings
from vc_core.commands.record import Record
from vc_core.commands.setting_types import APPLIED, EASINGS, MASKS, METHODS, MODES, WHITES
from vc_core.commands.settings import SETTINGS, TITLES, Settings, as_option
from vc_core.conditions import CONDITIONS
from vc_core.diffusion.noise import NOISES
from vc_core.diffusion.samplers import SAMPLERS
from vc_core.errors import UserError

NAMES = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=8)
PATHS = NAMES.map(Path)
FRACTIONS = st.floats(0, 1)
STRATEGIES = {
    "use": st.lists(st.sampled_from(list(CONDITIONS)), unique=True).map(tuple),
    "start": st.floats(0, 1e6),
    "rate": st.none() | st.floats(1e-3, 1e6),
    "motion_mode": st.sampled_from(MODES),
    "sketch_method": st.sampled_from(METHODS),
    "nominal_height": st.none() | st.integers(16, 8192),
    "depth_near": st.sampled_from(["bright", "dark"]),
    "depth_scale": st.none() | st.floats(1e-3, 1e3),
    "mask_white": st.sampled_from(WHITES),
    "mask_draw": st.none() | st.sampled_from([*MASKS, "any"]),
    "mask_seed": st.integers(0, 2**63 - 1),
    "models": st.lists(PATHS).map(tuple),
    "canvas": st.none() | st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
    "radius": st.none() | st.floats(1e-3, 1e6),
    "pan": st.tuples(st.floats(-9, 9), st.floats(-9, 9)),
    "zoom": st.floats(1e-3, 1e3),
    "roll": st.floats(-1e3, 1e3),
    "easing": st.sampled_from(EASINGS),
    "carry": FRACTIONS,
    "text": st.text(),
    "text_at": st.dictionaries(st.integers(1, 10**6), st.text()),
    "negative": st.text(),
    "vgen_prompts": st.booleans(),
    "sketch_lines": st.none() | st.sampled_from(["bright", "dark", "none"]),
    "strength": st.dictionaries(st.sampled_from(APPLIED), st.floats(allow_nan=False, allow_infinity=False)),
    "schedule": st.dictionaries(
        st.sampled_from(APPLIED), st.tuples(FRACTIONS, FRACTIONS).map(lambda span: tuple(sorted(span)))
    ),
    "denoise": st.floats(0, 1, exclude_min=True),
    "frames": st.none() | st.integers(1, 10**6),
    "size": st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)).map(lambda s: (8 * s[0], 8 * s[1])),
    "fps": st.none() | st.floats(1e-3, 1000),
    "scale": st.none() | st.integers(1, 64),
    "batch_size": st.integers(1, 64),
    "seed": st.integers(0, 2**63 - 1),
    "sampler": st.none() | st.sampled_from(SAMPLERS),
    "steps": st.none() | st.integers(1, 1000),
    "eta": FRACTIONS,
    "guidance": st.none() | st.floats(-100, 100),
    "condition_guidance": st.floats(-100, 100),
    "rescale": FRACTIONS,
    "noise": st.sampled_from(list(NOISES)),
    "window": st.none() | st.integers(1, 999),
    "overlap": st.none() | st.integers(0, 999),
    "parts": st.lists(PATHS).map(tuple),
    "lora": st.dictionaries(PATHS, st.floats(allow_nan=False, allow_infinity=False)),
    "keyframe": st.dictionaries(PATHS, st.lists(st.integers(-99, 99), min_size=1).map(tuple)),
    "keep": st.integers(1, 99),
    "drag": st.booleans(),
    "drag_inside": FRACTIONS,
    "drag_outside": FRACTIONS,
    "few_steps": st.sampled_from([None, True, False]),
    "upscale": st.none() | st.floats(1.01, 8),
    "upscale_denoise": st.floats(0.01, 0.99),
    "prediction": st.sampled_from([None, "epsilon", "v_prediction"]),
    "zero_terminal_snr": st.sampled_from([None, True, False]),
    "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:1", "mps"]),
    "dtype": st.sampled_from(["auto", "fp32", "fp16", "bf16", "fp8"]),
    "compute": st.sampled_from(["auto", "fp32", "fp16", "bf16"]),
    "offload": st.booleans(),
    "compile": st.booleans(),
    "chunk": st.integers(1, 999),
    "tile": st.none() | st.integers(64, 999),
    **dict.fromkeys(
        [
            "video",
            "mask",
            "image",
            "sketch",
            "style",
            "init",
            "extend",
            "out",
            "sheet",
            "checkpoint",
            "depth_model",
            "depth_maps",
            "tracks",
            "upscale_model",
        ],
        st.none() | PATHS.filter(lambda path: path != Path("bundled")),
    ),
}


@hypothesis_settings(deadline=None, max_examples=50)
@given(st.fixed_dictionaries(STRATEGIES).map(lambda values: Settings(**values)))
def test_any_settings_survive_json(settings):
    assert set(STRATEGIES) == set(SETTINGS)
    assert Settings.from_mapping(json.loads(json.dumps(settings.to_mapping()))) == settings
    inputs = {"image": [{"path": "/a", "name": "a", "sha256": "0"}]}
    record = Record(settings, inputs, {"sketch": {"method": "edges"}}, {"torch": "1"}, {"threads": 2})
    assert record.to_json().isascii() and "\n" not in record.to_json()
    assert Record.from_json(record.to_json()) == record


def as_texts(settings):
    """Settings as a user types them."""
    texts = {}
    for name, value in {**settings.to_mapping(), "checkpoint": settings.checkpoint}.items():
        if name == "keyframe":
            value = [f"{file}={index}" for file, indices in value.items() for index in indices]
        elif isinstance(value, dict):
            value = [f"{k}={':'.join(map(str, v)) if isinstance(v, list) else v}" for k, v in value.items()]
        elif name in ("use", "pan"):
            value = ",".join(map(str, value))
        elif not isinstance(value, (list, bool)) and value is not None:
            value = str(value)
        if value not in (None, []):
            texts[name] = value
    return texts


@hypothesis_settings(deadline=None, max_examples=50)
@given(st.fixed_dictionaries(STRATEGIES).map(lambda values: Settings(**values)))
def test_any_settings_can_be_written_as_options(settings):
    assert Settings().with_options(as_texts(settings)) == settings


def test_words_are_those_of_the_extractors():
    from vc_core.extract import drawing, mask
    from vc_core.extract.motion import from_video as motion
    from vc_core.extract.sketch import methods as sketch

    assert (tuple(drawing.EASINGS), tuple(sketch.METHODS), tuple(motion.MODES)) == (EASINGS, METHODS, MODES)
    assert (tuple(mask.POLARITIES), tuple(mask.RANDOM_MASKS)) == (WHITES, MASKS)


def test_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "video: clips/in.mp4\nuse: [motion, sketch]\ntext: ein roter Kreis\nsize: 64x48\nguidance: 3\n"
        "strength: {motion: 0.5}\nschedule: {sketch: [0, 0.6]}\ncheckpoint: bundled\nseed:\nout: /there/out.webm\n"
    )
    settings = Settings.from_yaml(tmp_path / "a.yaml")
    assert settings.video == tmp_path / "clips" / "in.mp4"
    assert settings.out == tmp_path / "/there/out.webm"  # on Windows of the same drive
    assert settings.size == (48, 64)  # height, width
    assert (settings.guidance, settings.seed, settings.checkpoint) == (3.0, 0, None)
    assert settings.use == ("motion", "sketch")
    assert (settings.strength, settings.schedule) == ({"motion": 0.5}, {"sketch": (0.0, 0.6)})
    (tmp_path / "a.json").write_text(json.dumps(settings.to_mapping()))
    assert Settings.from_yaml(tmp_path / "a.json") == settings


def test_the_settings_files_in_the_readme(repository):
    page = (repository / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^`(settings|runs)\.yaml` contains.*\n\n((?:    .*\n)+)", page, re.MULTILINE)
    single, many = (yaml.safe_load(text) for _, text in blocks)
    assert Settings.from_mapping(single).batch_size == 2
    assert [Settings.from_mapping({**many["defaults"], **run}).text for run in many["runs"]][1] == "a green star"


def test_keys_are_spelled_like_the_options(tmp_path):
    (tmp_path / "a.yaml").write_text("batch-size: 2\nmask_draw: half\nmask-seed: 5\n")
    assert Settings.from_yaml(tmp_path / "a.yaml") == Settings(batch_size=2, mask_draw="half", mask_seed=5)


def test_an_option_replaces_the_setting_that_it_excludes():
    masked = Settings(video="a.mp4", use=("mask",), mask="m.png", mask_white="keep")
    random = masked.with_options({"mask_draw": "half", "mask_seed": "3"})
    assert (random.mask, random.mask_white, random.mask_draw, random.mask_seed) == (None, "paint", "half", 3)
    assert random.with_options({"mask": "m.png", "mask_white": "keep"}) == masked
    both = Settings().with_options({"depth_maps": "a", "depth_model": "b"})
    assert both.depth_maps and both.depth_model  # check_settings refuses this


def test_options_override_and_mappings_join():
    settings = Settings(seed=1, steps=5, strength={"motion": 0.5, "style": 1.0}, offload=True)
    changed = settings.with_options({"seed": "2", "strength": ["style=0.25"], "offload": False})
    assert changed == dataclasses.replace(settings, seed=2, strength={"motion": 0.5, "style": 0.25}, offload=False)


def test_texts_at_frames(tmp_path):
    (tmp_path / "a.yaml").write_text("text: a\ntext_at: {40: b, 24: c}\n")
    settings = Settings.from_yaml(tmp_path / "a.yaml")
    assert settings.text_at == {40: "b", 24: "c"}
    assert settings.with_options({"text_at": ["40=x=y", "8=z"]}).text_at == {40: "x=y", 24: "c", 8: "z"}
    assert Settings().to_mapping().keys().isdisjoint({"text_at", "noise"})  # version 0.1 can read the record


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["b"], '--text-at is b. Expected FRAME=TEXT, e.g. 40="a blue square".'),
        (["x=b"], "--text-at is x=b. Expected FRAME=TEXT"),
        (["0=b"], "Expected frames after 0, because 'text' is the prompt of frame 0."),
        (["5=b", "5=c"], "Expected each frame only once."),
    ],
)
def test_wrong_texts_at_frames(value, message):
    with pytest.raises(UserError) as error:
        Settings().with_options({"text_at": value})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_at": {8: "b"}}, "--text-at requires --text."),
        ({"text": "a", "text_at": {64: "b"}, "frames": 64}, "the last of 64 frames is frame 63"),
        ({"noise": "warped"}, "--noise warped requires the condition 'motion'"),
    ],
)
def test_texts_and_noise_without_effect(values, message):
    with pytest.raises(UserError, match=message):
        check_settings(Settings(**values))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("lora: a.safetensors", {"a.safetensors": 1.0}),
        ("lora: a.safetensors=0.5", {"a.safetensors": 0.5}),
        ("lora: [a.safetensors=-0.5, b=c.pth]", {"a.safetensors": -0.5, "b=c.pth": 1.0}),
        ("lora: {a.safetensors: 0.5, sub/b.pth: 1}", {"a.safetensors": 0.5, "sub/b.pth": 1.0}),
    ],
)
def test_loras_and_their_strengths(tmp_path, content, expected):
    (tmp_path / "a.yaml").write_text(content)
    settings = Settings.from_yaml(tmp_path / "a.yaml")
    assert settings.lora == {tmp_path / name: strength for name, strength in expected.items()}
    assert settings.inputs()["lora"] == tuple(settings.lora)
    assert settings.with_options({"lora": ["x.pth=2"]}).lora == {Path("x.pth"): 2.0}  # replaces the file's


@pytest.mark.parametrize("content", ["lora: bundled=0.5", "lora: {bundled: 0.5}"])
def test_the_bundled_lora_is_found_by_name(tmp_path, content):
    (tmp_path / "a.yaml").write_text(content)
    assert Settings.from_yaml(tmp_path / "a.yaml").lora == {BUNDLED_LORA: 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("guidence: 3", "There is no setting 'guidence'. Did you mean 'guidance'? See ./vc compose --help"),
        ("steps: many", "'steps' is many. Expected an integer of at least 1."),
        ("steps: 2.5", "'steps' is 2.5. Expected an integer"),
        ("steps: '20'", "'steps' is 20. Expected an integer"),
        ("steps: true", "'steps' is True. Expected an integer"),
        ("steps: 0", "'steps' is 0. Expected an integer of at least 1."),
        ("fps: .nan", "'fps' is nan. Expected a number above 0 and at most 1000."),
        (f"fps: 1{'0' * 400}", "'fps'"),
        ("text: 42", "'text' is 42. Expected text in quotes."),
        ("text: yes", "Expected text in quotes"),
        ("use: [motion, smell]", "Unknown condition 'smell'"),
        ("use: [motion, motion]", "Expected each condition only once"),
        ("sampler: dpmpp", "Expected one of dpmpp_2m"),
        ("size: [64, 48]", "Expected WIDTHxHEIGHT"),
        ("size: 30x30", "Expected multiples of 8"),
        ("strength: 0.5", "Expected a mapping such as {motion: 0.5}"),
        ("strength: {motoin: 1}", "Did you mean 'motion'?"),
        ("lora: 0.5", "Expected paths, or a mapping of paths to strengths"),
        ("lora: {a.safetensors: much}", "'lora'"),
        ("lora: {a.safetensors: .inf}", "'lora'"),
        ("lora: [a.pth, ./a.pth=2]", "Expected each file only once"),
        ("schedule: {style: 0:0.6}", "'schedule'"),  # YAML reads 0:0.6 as 0.6
        ("schedule: {style: [0.6, 0]}", "Expected 0 <= start <= end <= 1"),
        ("device: gpu", "Expected auto, cpu, cuda"),
        ("video: [a, b]", "Expected a path"),
        ("compile: 1", "Expected true or false"),
        ("- steps: 2", "Expected lines such as 'steps: 20', got [{'steps': 2}]. For a list of settings, use --batch"),
        ("", "Expected lines such as 'steps: 20', got None."),
        ("steps: [", "cannot be read as settings (line 1, column 9: expected the node content"),
        (
            "text: 'a\nseed: 1\n",
            "line 3, column 1: found unexpected end of stream, while scanning a",
        ),
        ("mask-sede: 3", "There is no setting 'mask-sede'. Did you mean 'mask_seed'?"),
        ("mask-seed: 3\nmask_seed: 4", "The setting 'mask_seed' occurs twice"),
        ("steps: !!python/object/apply:os.getcwd []", "cannot be read as settings"),
    ],
)
def test_bad_files_are_refused_by_name_and_key(tmp_path, content, message):
    path = tmp_path / "my settings.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        Settings.from_yaml(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_settings_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"The settings file .*none\.yaml does not exist"):
        Settings.from_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("text: Gr\u00fcn".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml cannot be read as settings"):
        Settings.from_yaml(tmp_path / "latin.yaml")


DEPTH, MASK = ({"video": "a.mp4", "use": (name,)} for name in ("depth", "mask"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use": ("motion",)}, "--use motion requires a source. Add --video FILE"),
        ({"video": "a.mp4"}, "Choose the conditions to extract from it, for example --use motion"),
        ({"mask": "m.png"}, "Add mask to --use"),
        ({"video": "a.mp4", "use": ("mask",)}, "The condition 'mask' requires a mask"),
        ({"video": "a.mp4", "use": ("single_image",), "image": "b.png"}, "'single_image' is set twice"),
        ({"strength": {"motion": 0.5}}, "--strength names conditions that are not used: motion. Remove them"),
        ({"schedule": {"single_image": (0, 1)}}, "--schedule names conditions that are not used: single_image"),
        ({"init": "a.mp4"}, "has no effect at --denoise 1"),
        ({"denoise": 0.5}, "requires a video to start from. Add --init FILE"),
        ({"rate": 8}, "--rate 8.0 has no effect"),
        ({"start": 1}, "--start 1.0 has no effect"),
        ({"eta": 0.5}, "--eta 0.5 works only with the ddim samplers"),
        ({"window": 8, "overlap": 8}, "--overlap must be smaller than --window 8, got 8"),
        (
            {"easing": "ease_in"},
            "--easing ease_in has no effect. It works only with one of --tracks, --pan, --zoom, --roll",
        ),
        ({"zoom": 2, "motion_mode": "stream"}, "--motion-mode has no effect. Add motion to --use"),
        ({"pan": (1, 0), "nominal_height": 336}, "--nominal-height has no effect. Add motion to --use"),
        ({**DEPTH, "depth_near": "dark"}, "--depth-near requires --depth-maps"),
        ({**DEPTH, "depth_scale": 2, "depth_model": "m"}, "--depth-scale requires --depth-maps"),
        ({**DEPTH, "depth_maps": "a", "depth_model": "b"}, "--depth-maps and --depth-model exclude each other"),
        ({**MASK, "mask": "a.png", "mask_draw": "half"}, "--mask and --mask-draw exclude each other"),
        ({**MASK, "mask_draw": "half", "mask_white": "keep"}, "--mask-white requires --mask. "),
        ({**MASK, "mask": "a.png", "mask_seed": 1}, "--mask-seed requires --mask-draw"),
        ({"mask_draw": "half"}, "--mask-draw has no effect. Add mask to --use"),
        ({"sketch_lines": "bright"}, "--sketch-lines requires --sketch"),
        ({"sketch_method": "edges"}, "--sketch-method has no effect. Add sketch or single_sketch to --use"),
        (
            {"sketch": "a.png", "sketch_lines": "dark", "sketch_method": "edges"},
            "--sketch-lines dark means that the image is a drawing",
        ),
    ],
)
def test_contradictions_and_settings_without_effect(values, message):
    with pytest.raises(UserError) as error:
        check_settings(Settings(**values))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"image": "a.png", "strength": {"single_image": 0.5}},
        {"style": "a.png", "schedule": {"style": (0, 0.5)}},
        {"init": "a.mp4", "denoise": 0.5, "rate": 8},
        {"sampler": "ddim_released", "eta": 1},
        {"window": 8, "overlap": 0},
        {"zoom": 2, "easing": "ease_in"},
        {"sketch": "a.png", "sketch_method": "edges"},
        {"sketch": "a.png", "sketch_lines": "none", "sketch_method": "edges"},
        {"sketch": "a.png", "sketch_lines": "dark", "video": "a.mp4", "use": ("sketch",), "sketch_method": "edges"},
        {**DEPTH, "depth_maps": "a", "depth_near": "dark", "depth_scale": 2},
        {**MASK, "mask_draw": "any", "mask_seed": 5},
        {**MASK, "mask": "a.png", "mask_white": "keep"},
    ],
)
def test_settings_without_contradictions(values):
    check_settings(Settings(**values))


def test_every_setting_has_a_help_text_and_a_group():
    assert set(TITLES) == set(SETTINGS)
    for name, help in SETTINGS.items():
        assert help and TITLES[name], name
        assert as_option(name).startswith("--") and "_" not in as_option(name)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "inputs": {"image": [1]}}', "null"])
def test_a_damaged_record(text):
    with pytest.raises(UserError, match=r"The settings in the file are damaged|Another version of this program"):
        Record.from_json(text)


def test_the_version_is_that_of_the_project(repository):
    from vc_core.commands.record import VERSION

    assert f'version = "{VERSION}"' in (repository / "pyproject.toml").read_text()
