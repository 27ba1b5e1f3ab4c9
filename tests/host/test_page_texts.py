"""Help pages and translations of the nodes: both languages describe every node, input and output."""

import json
import re
from pathlib import Path

import pytest

from locales.english import ENGLISH, node_texts
from vc_core.published import MODELS

REPOSITORY = Path(__file__).parents[2]
DOCS, LOCALES = REPOSITORY / "web" / "docs", REPOSITORY / "locales"
PAGES = {"en": lambda node: DOCS / f"{node}.md", "zh": lambda node: DOCS / node / "zh.md"}
HEADINGS = {
    "en": ("Inputs", "Outputs", "Example", "Good to know"),
    "zh": ("输入", "输出", "示例", "须知"),
}
# Node that requires downloads -> the files of vc_core.published that its page must name.
FILES = {
    "VCCheckpointLoader": ("non_ema_228000.pth", "vae-ft-mse-840000-ema-pruned.safetensors",
                           "text_encoder/model.safetensors", "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"),
    "DepthSequence": ("midas_v3_dpt_large.pth",),
    "VCSketchSequence": ("table5_pidinet.pth", "sketch_simplification_gan.pth"),
    "VCSingleSketch": ("table5_pidinet.pth", "sketch_simplification_gan.pth"),
}  # fmt: skip


def inputs_of(node):
    return {name: spec for group in ("required", "optional") for name, spec in node["input"].get(group, {}).items()}


def sections(page):
    """Return second-level heading -> the text below it."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def entries(section):
    """Return name in backquotes -> (text in brackets, text after it), for the lists in a section."""
    rows = re.findall(r"^- `([^`]+)` ?[(（](.+?)[)）][:：] ?(.+)$", section, flags=re.MULTILINE)
    return {name: (brackets, text) for name, brackets, text in rows}


@pytest.mark.parametrize("language", PAGES)
def test_every_node_has_a_complete_help_page(host, language):
    lacking = []
    for name, node in host.pack_nodes().items():
        path = PAGES[language](name)
        if not path.is_file():
            lacking.append(f"{name}: no page {path}")
            continue
        page, (inputs, outputs, *others) = path.read_text(encoding="utf-8"), HEADINGS[language]
        parts = sections(page)
        if not page.startswith("# ") or any(
            not parts.get(heading, "").strip() for heading in (inputs, outputs, *others)
        ):
            lacking.append(f"{name}: one of the sections {', '.join(HEADINGS[language])} is missing")
            continue
        if list(entries(parts[inputs])) != (expected := list(inputs_of(node))):
            lacking.append(f"{name}: its inputs are {list(entries(parts[inputs]))}, expected {expected}")
        if list(entries(parts[outputs])) != node["output_name"]:
            lacking.append(f"{name}: its outputs are {list(entries(parts[outputs]))}, expected {node['output_name']}")
        for key, (kind, options) in inputs_of(node).items():
            brackets, text = entries(parts[inputs]).get(key, ("", ""))
            if not default_is_stated(brackets, kind, options):
                lacking.append(f"{name}: {key} has the default {options['default']!r}")
            lacking += [
                f"{name}: {key} does not describe `{word}`" for word in words(kind, options) if word not in text
            ]
    assert not lacking


def default_is_stated(brackets, kind, options):
    """Whether an input's brackets start with its default; for texts and sockets they contain the type."""
    default = options.get("default")
    if default is None or kind == "STRING":
        return True
    match = re.match(r"(?:default|默认) (?:`(.+?)`|(-?[\d.]+))", brackets)
    return match is not None and (match[1] == default if isinstance(default, str) else float(match[2]) == default)


def words(kind, options):
    """Return an input's options that are this pack's own, which its row must name."""
    choices = kind if isinstance(kind, list) else options.get("options") or []
    own = len(choices) <= 8 and not any(choice.endswith(")") for choice in choices)
    return [f"`{choice}`" for choice in choices] if own else []


@pytest.mark.parametrize("language", PAGES)
def test_pages_name_the_files_that_a_node_needs_and_their_sizes(language):
    files = {file.name: file for file in MODELS}
    for node, names in FILES.items():
        page = PAGES[language](node).read_text(encoding="utf-8")
        for name in names:
            (row,) = re.findall(rf"^- `{re.escape(name)}`.*$", page, flags=re.MULTILINE)
            size = files[name].size
            assert (f"{size / 1e9:.2f} GB" if size > 1e9 else f"{size / 1e6:.1f} MB") in row
            address = re.search(r"https://\S+", row).group()
            assert files[name].source.startswith(address), row


def test_there_is_no_page_of_a_removed_node(host):
    pages = {path.stem if path.is_file() else path.name for path in DOCS.iterdir()}
    assert pages == set(host.pack_nodes())


def test_the_english_texts_are_those_of_the_schemas(host):
    assert json.loads(ENGLISH.read_text(encoding="utf-8")) == node_texts(host.pack_nodes()), (
        "Start ComfyUI with this pack, then run: python locales/english.py http://127.0.0.1:8188"
    )


def test_every_text_has_a_chinese_one(host):
    texts = json.loads((LOCALES / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    # A widget that the page adds to every seed.
    extra = {("VC3DUNetSampler", "inputs", "control_after_generate", "name")}
    english = {keys for keys, _ in leaves(node_texts(host.pack_nodes()))}
    chinese = dict(leaves(texts))
    assert set(chinese) - extra == english
    names = {"VAE", "CLIP", "cfg", "Latent"}
    untranslated = [keys for keys, text in chinese.items() if not re.search(r"[一-鿿]", text) and text not in names]
    assert not untranslated


@pytest.mark.parametrize("name", ["main", "settings"])
def test_both_languages_have_the_same_other_texts(name):
    english, chinese = (dict(leaves(json.loads((LOCALES / lang / f"{name}.json").read_text()))) for lang in PAGES)
    assert set(english) == set(chinese)


def test_every_category_has_a_text(host):
    categories = json.loads((LOCALES / "zh" / "main.json").read_text(encoding="utf-8"))["nodeCategories"]
    assert {part for node in host.pack_nodes().values() for part in node["category"].split("/")} == set(categories)


@pytest.mark.parametrize("language", PAGES)
def test_no_text_contains_the_syntax_of_translations(language):
    """In vue-i18n, `{`, `}`, `@`, `|` and `$` are syntax, except in literals such as {'@'}."""
    for path in (LOCALES / language).glob("*.json"):
        for keys, text in leaves(json.loads(path.read_text(encoding="utf-8"))):
            assert not re.search(r"[{}@|$]", re.sub(r"\{'[{}@|$]'\}", "", text)), (path.name, keys)


def leaves(texts, keys=()):
    """Yield (keys, text) for every text."""
    for key, value in texts.items():
        if isinstance(value, dict):
            yield from leaves(value, (*keys, key))
        else:
            yield (*keys, key), value
