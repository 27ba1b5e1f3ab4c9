"""Captions as people and tools write them; every list and text is written here."""

import codecs
import json
import math

import numpy as np
import pytest

from training.data.caption_lists import CAPTION, FILE, LISTS, READERS, TEXTS, Entry, named_in, read_list
from training.data.folder import read_captions, usable
from vc_core.errors import UserError

SWAN = "a black swan, swimming on a river, at dusk"


def read(folder, name, text, encoding="utf-8"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return [(entry.file, entry.caption) for entry in read_list(folder / name)]


TEXT = {".csv": f'file,caption\na.mp4,"{SWAN} é 天"\n', ".tsv": f"file\tcaption\na.mp4\t{SWAN} é 天\n",
        ".jsonl": f'{{"file": "a.mp4", "caption": "{SWAN} é 天"}}\n',
        ".json": f'[{{"file": "a.mp4", "caption": "{SWAN} é 天"}}]'}  # fmt: skip


# --- Tables ---------------------------------------------------------------------------------------------------------


def test_a_caption_with_a_comma_is_complete_or_refused(tmp_path):
    """Nobody would notice a caption that was cut at its comma."""
    quoted = f'file,caption\na.mp4,"{SWAN}"\nb.mp4,x\n'
    assert read(tmp_path, "a.csv", quoted) == [("a.mp4", SWAN), ("b.mp4", "x")]
    assert read(tmp_path, "a.csv", quoted.replace(",", ", "))[0] == ("a.mp4", SWAN.replace(",", ", "))
    for text in (
        f"file,caption\nb.mp4,x\na.mp4,{SWAN}\n",
        f"file,caption,license\nb.mp4,x,CC0\na.mp4,{SWAN},CC0\n",
        f"caption;file\nx;b.mp4\n{SWAN.replace(',', ';')};a.mp4\n",
        f"file\tcaption\nb.mp4\tx\na.mp4\t{SWAN}\tCC0\n",
        f"file,caption,,\nb.mp4,x,,\na.mp4,{SWAN}\n",
    ):
        with pytest.raises(UserError, match="Line 3 has more columns than the header"):
            read(tmp_path, "a.csv", text)
    assert read(tmp_path, "a.csv", "file,caption,,\na.mp4,x,,\nb.mp4,y,,,\n") == [("a.mp4", "x"), ("b.mp4", "y")]


@pytest.mark.parametrize(
    "header",
    ["File,Caption", " file , caption ", "FILE_NAME,TEXT", "file-name,Text", "\ufefffile,caption", '"File","Caption"',
     "filename,prompt", "path,description", "video,captions", "File Name,Caption ", "video_file_name,text"],
)  # fmt: skip
def test_a_header_names_the_columns_however_it_is_written(tmp_path, header):
    assert read(tmp_path, "a.csv", f"{header}\na.mp4,{'x'}\n") == [("a.mp4", "x")]
    assert read(tmp_path, "b.csv", f"license,{header}\nCC0,a.mp4,x\n") == [("a.mp4", "x")]


def test_the_first_name_of_the_table_is_the_column():
    row = {"Text": 1, "caption": 2, "path": 3, "File": 4}
    assert named_in(row, FILE) == "File" and named_in(row, ("caption", "text")) == "caption"
    assert named_in({"name": 1}, FILE) is None


def test_other_columns_are_kept_by_their_names(tmp_path):
    (tmp_path / "a.csv").write_text("File,License,Caption\na.mp4,CC0,x\n")
    assert read_list(tmp_path / "a.csv") == [Entry("a.mp4", "x", {"License": "CC0"})]


def test_start_and_end_are_the_span_of_a_clip_in_seconds(tmp_path):
    """They are kept as columns too, so that shards contain them."""
    text = "file,Start,caption,end\na.mp4,1.5,x,4\na.mp4,,x,4\na.mp4,2,x,\na.mp4,,x,\n"
    (tmp_path / "a.csv").write_text(text)
    entries = read_list(tmp_path / "a.csv")
    assert [entry.span for entry in entries] == [(1.5, 4.0), (0.0, 4.0), (2.0, math.inf), None]
    assert entries[0].others == {"Start": "1.5", "end": "4"}
    (tmp_path / "a.jsonl").write_text(json.dumps({"file": "a.mp4", "caption": "x", "start": 1, "end": 2.5}))
    assert read_list(tmp_path / "a.jsonl")[0].span == (1.0, 2.5)


@pytest.mark.parametrize(
    ("start", "end"), [("2", "2"), ("3", "1"), ("-1", "1"), ("00:01", "2"), ("nan", "2"), ("", "0")]
)
def test_an_impossible_span_is_a_fault_of_its_clip(tmp_path, start, end):
    (tmp_path / "a.csv").write_text(f"file,start,end,caption\na.mp4,{start},{end},x\nb.mp4,0,1,x\n")
    bad, good = read_list(tmp_path / "a.csv")
    assert bad.fault.startswith(f"Line 2 has start {start} and end {end}. Expected seconds") and not good.fault


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_columns_have_the_separator_of_the_header(tmp_path, mark):
    text = f'file{mark}caption\r\na.mp4{mark}"one{mark} two"\r\nb.mp4{mark}"lines\nof ""text"""\r\n\r\n'
    assert read(tmp_path, "a.csv", text) == [("a.mp4", f"one{mark} two"), ("b.mp4", 'lines\nof "text"')]


def test_characters_that_only_look_like_line_ends_belong_to_the_caption(tmp_path):
    for name, mark in (("a.csv", ","), ("a.tsv", "\t")):
        text = f"file{mark}caption\na.mp4{mark}one\u2028two\x85three\x0cfour\n"
        assert read(tmp_path, name, text) == [("a.mp4", "one\u2028two\x85three\x0cfour")]


def test_quotes_in_a_tsv_are_text(tmp_path):
    text = 'file\tcaption\na.mp4\t"Hello", it says\nb.mp4\t"a ""big"" swan"\nc.mp4\t5" of snow\nd.mp4\t"\n'
    assert [caption for _, caption in read(tmp_path, "a.tsv", text)] == [
        '"Hello", it says', 'a "big" swan', '5" of snow', '"',
    ]  # fmt: skip


# --- JSON -----------------------------------------------------------------------------------------------------------

ROWS = [{"file_name": "a.mp4", "text": SWAN}, {"file_name": "b.mp4", "text": "x"}]
EXPECTED = [("a.mp4", SWAN), ("b.mp4", "x")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("a.json", "\n".join(map(json.dumps, ROWS)) + "\n"),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", json.dumps({"version": 1, "data": ROWS})),
        ("a.json", json.dumps({"a.mp4": SWAN, "b.mp4": "x"})),
        ("a.json", json.dumps({"a.mp4": {"caption": SWAN}, "b.mp4": {"caption": "x"}}, indent=1)),
        ("a.jsonl", "\r\n".join(json.dumps({"Video": r["file_name"], "Captions": ["", r["text"], "z"]}) for r in ROWS)),
    ],
)
def test_json_is_read_in_its_usual_forms(tmp_path, name, text):
    assert read(tmp_path, name, text) == EXPECTED


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", 'file,caption\na.mp4,x\nb.mp4,"y" z\n', "Line 3 is not CSV"),
        ("a.csv", 'file,caption\na.mp4,x\nb.mp4,"y\n', "Line 3 is not CSV"),
        ("a.csv", "file,Caption,caption\na.mp4,x,y\n", "Line 1 has two columns named caption"),
        ("a.csv", "a.mp4,x\nb.mp4,y\n", r"Line 2 has no 'file' \(it has a.mp4 and x\)"),
        ("a.tsv", "file,caption\na.mp4,x\n", r"Line 2 has no 'file' \(it has file,caption\)"),
        ("a.json", "{", "it is not JSON"),
        ("a.json", "7", "Entry 1 is not an object"),
        ("a.jsonl", '{"file": "a.mp4", "caption": "x"}\n' + "[" * 100_000, "Line 2 is not JSON"),
        ("a.jsonl", '{"file": "", "caption": "x"}', "Line 1 has no text for 'file'"),
        ("a.csv", "file,caption\na.mp4,x\n".encode("utf-16-le"), "byte order mark"),
    ],
)
def test_lists_with_a_wrong_structure_are_refused_with_the_line(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, name, text)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_the_first_line_of_excel_sets_the_separator(tmp_path):
    assert read(tmp_path, "a.csv", "sep=;\r\nfile;caption\r\na.mp4;x, y\r\n") == [("a.mp4", "x, y")]


def test_a_value_that_shards_cannot_store_is_a_fault(tmp_path):
    row = {"file": "a.mp4", "caption": "x", "more": json.loads("[" * 400 + "]" * 400)}
    (tmp_path / "a.jsonl").write_text(f'{json.dumps(row)}\n{{"file": "b.mp4", "caption": "x", "more": {{"a": [1]}}}}')
    assert [bool(entry.fault) for entry in read_list(tmp_path / "a.jsonl")] == [True, False]


def test_the_guide_shows_the_table(repository):
    guide = (repository / "training" / "README.md").read_text(encoding="utf-8")
    for name in {*FILE, *CAPTION, *TEXTS, *READERS}:
        assert f"`{name}`" in guide or f"`captions{name}`" in guide or f"swan{name}" in guide, name
    assert "`metadata.csv`" in guide


@pytest.mark.parametrize("ending", READERS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_lists_give_entries_or_an_error(tmp_path, ending):
    random = np.random.default_rng(7)
    intact = TEXT[ending].encode() + TEXT[ending].encode().split(b"\n")[-2 if ending in (".csv", ".tsv") else 0]
    for number in range(250):
        data = bytearray(intact)
        for place in random.integers(len(data), size=random.integers(1, 6)):
            data[place] = random.choice([0, 10, 34, 44, 92, 0xFF, random.integers(256)])
        (tmp_path / f"a{ending}").write_bytes(data[: len(data) - number % 7])
        try:
            entries = read_list(tmp_path / f"a{ending}")
        except UserError as error:
            assert str(tmp_path) in str(error)
            continue
        for entry in entries:
            assert entry.file and (entry.fault or entry.caption.encode() is not None)


# --- Encodings and single faults ------------------------------------------------------------------------------------

MARKED = {"utf-8": b"", "utf-8-sig": b"", "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE,
          "utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE}  # fmt: skip


@pytest.mark.parametrize("encoding", MARKED)
def test_every_list_and_text_is_read_in_every_marked_encoding(tmp_path, encoding):
    def encoded(text):
        return MARKED[encoding] + text.encode(encoding)

    assert TEXT.keys() == READERS.keys()
    for ending, text in TEXT.items():
        assert read(tmp_path, f"list{ending}", encoded(text)) == [("a.mp4", f"{SWAN} é 天")]
    for number, ending in enumerate(TEXTS):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{number}.mp4").touch()
        text = json.dumps({"caption": "é 天"}, ensure_ascii=False) if ending == ".json" else " é\n天\n"
        (tmp_path / "texts" / f"{number}{ending}").write_bytes(encoded(text))
    assert [entry.caption for entry in read_captions(tmp_path / "texts")] == ["é 天"] * len(TEXTS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", b'{"file": "a.mp4", "caption": "nice \\ud83d swan"}\n{"file": "b.mp4", "caption": "x"}\n'),
        ("a.jsonl", b'{"file": "a.mp4", "caption": null}\n{"file": "b.mp4", "caption": "x"}\n'),
        ("a.jsonl", b'{"file": "a.mp4"}\n{"file": "b.mp4", "caption": "x"}\n'),
        ("a.jsonl", b'{"file": "a.mp4", "caption": 7}\n{"file": "b.mp4", "caption": "x"}\n'),
        ("a.jsonl", b'{"file": "a\\u0000.mp4", "caption": "x"}\n{"file": "b.mp4", "caption": "x"}\n'),
        ("a.csv", b"file,caption\na.mp4,caf\xe9\nb.mp4,x\n"),
        ("a.csv", b"file,caption\na.mp4\nb.mp4,x\n"),
        ("a.tsv", b"file\tcaption\na.mp4\tone\0two\nb.mp4\tx\n"),
        ("a.csv", b"file,caption\n,x\nb.mp4,x\n"),
        ("a.jsonl", b'{"caption": "x"}\n{"file": "b.mp4", "caption": "x"}\n'),
        ("a.csv", codecs.BOM_UTF16_LE + "file,caption\na.mp4,\ud83d\nb.mp4,x\n".encode("utf-16-le", "surrogatepass")),
        ("a.tsv", b"file\tcaption\na.mp4\t\xed\xa0\xbd swan\nb.mp4\tx\n"),
        ("a.json", b'{"a.mp4": [], "b.mp4": "x"}'),
    ],
)
def test_a_bad_caption_affects_its_clip_only(tmp_path, name, text):
    (tmp_path / name).write_bytes(text)
    bad, good = read_list(tmp_path / name)
    assert bad.fault and bad.caption == "" and good == Entry("b.mp4", "x", {})
    with pytest.warns(UserWarning, match="Skipped 1 of 2 clips"):
        assert usable([bad, good], tmp_path) == [good]
    with pytest.raises(UserError, match="None of the 1 clip can"):
        usable([bad], tmp_path)


def test_an_emoji_in_two_escapes_is_one_character(tmp_path):
    text = '{"file": "a.mp4", "caption": "nice \\ud83e\\udda2"}'
    assert read(tmp_path, "a.jsonl", text) == [("a.mp4", "nice 🦢")]


# --- Next to files --------------------------------------------------------------------------------------------------


def folder_of(tmp_path, **texts):
    for name, text in texts.items():
        path = tmp_path / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return tmp_path


def test_texts_next_to_files_are_read_in_the_order_of_the_table(tmp_path):
    folder_of(tmp_path, a_mp4="", a_txt="of a", a_json='{"caption": "other"}', b_mp4="", b_caption="of\nb", c_mp4="",
              c_json='{"Text": "of c", "url": "x"}', d_mp4="", d_txt="", d_json='{"caption": "of d"}', e_mp4="",
              e_json='"of e"', f_mp4="", f_txt="", f_json='{"url": "x"}', g_mp4="", g_txt="of g",
              g_json="{")  # fmt: skip
    assert {entry.file: entry.caption for entry in read_captions(tmp_path)} == {
        "a.mp4": "of a", "b.mp4": "of b", "c.mp4": "of c", "d.mp4": "of d", "e.mp4": "of e", "f.mp4": "",
        "g.mp4": "of g",
    }  # fmt: skip


def test_texts_that_cannot_be_read_are_faults_of_their_clips(tmp_path):
    folder_of(tmp_path, a_mp4="", a_txt=b"caf\xe9", b_mp4="", b_json="{", c_mp4="", c_json="[" * 100_000, d_mp4="",
              d_json='{"url": "x"}', e_mp4="", e_txt="x" * (2**20 + 1), f_mp4="", f_txt="good")  # fmt: skip
    entries = read_captions(tmp_path)
    assert [bool(entry.fault) for entry in entries] == [True] * 5 + [False]


def test_a_file_that_is_not_a_video_needs_no_text(tmp_path):
    folder_of(tmp_path, a_mp4="", a_txt="x", a_npz="", a_jpg="", README_md="", Thumbs_db="", desktop_ini="",
              data_parquet="", odd_xyz="", odd_txt="tried", failed_txt="lost", failed_json="{}")  # fmt: skip
    with pytest.warns(UserWarning) as warned:
        assert [entry.file for entry in read_captions(tmp_path)] == ["a.mp4", "odd.xyz"]
    messages = " ".join(str(warning.message) for warning in warned)
    assert "1 file (texts without a video or an image): failed.txt" in messages
    assert "README.md" in messages and "data.parquet" in messages and "a.jpg" in messages and "Thumbs" not in messages


def test_linked_folders_have_texts_too(tmp_path):
    folder_of(tmp_path, data__a_mp4="", data__a_txt="of a", more__b_mp4="", more__b_txt="of b")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "more")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    with pytest.warns(UserWarning, match=r"1 linked folder \(.*\): loop"):
        entries = read_captions(tmp_path / "data")
    assert [(entry.file, entry.caption) for entry in entries] == [("a.mp4", "of a"), ("linked/b.mp4", "of b")]


# --- Lists of Hugging Face's data sets ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LISTS)
def test_lists_are_found_by_their_names(tmp_path, name):
    rows = {".csv": "File_Name,Text\na.mp4,x\n", ".tsv": "File_Name\tText\na.mp4\tx\n"}
    json_row = '{"File_Name": "a.mp4", "Text": "x"}'
    (tmp_path / name.upper()).write_text(rows.get(name[name.index(".") :], json_row))
    (tmp_path / "ignored.mp4").touch()
    assert [(entry.file, entry.caption) for entry in read_captions(tmp_path)] == [("a.mp4", "x")]


def test_lists_of_parts_are_relative_to_their_own_folders(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "metadata.jsonl").write_text(json.dumps({"file_name": "sub/a.mp4", "text": part}) + "\n")
    with pytest.warns(UserWarning, match=r"test/metadata\.jsonl, train/metadata\.jsonl"):
        entries = read_captions(tmp_path)
    assert [(e.file, e.caption) for e in entries] == [("test/sub/a.mp4", "test"), ("train/sub/a.mp4", "train")]


def test_metadata_without_captions_is_reported_and_texts_are_used(tmp_path):
    folder_of(tmp_path, a_mp4="", a_txt="x", metadata_csv="file_name,label\na.mp4,3\n")
    with pytest.warns(UserWarning, match=r"metadata\.csv"):
        assert [entry.caption for entry in read_captions(tmp_path)] == ["x"]
    (tmp_path / "captions.csv").write_text("file,caption\na.mp4,y\n")
    assert [entry.caption for entry in read_captions(tmp_path)] == ["y"]
    (tmp_path / "captions.tsv").write_text("file\tcaption\na.mp4\tz\n")
    with pytest.raises(UserError, match=r"contains captions\.csv and captions\.tsv"):
        read_captions(tmp_path)


def test_parquet_is_reported_if_captions_are_missing(tmp_path):
    folder_of(tmp_path, a_mp4="", metadata_parquet="PAR1")
    with pytest.raises(UserError, match=r"save the columns of its \.parquet as metadata\.jsonl"):
        read_captions(tmp_path)


def test_file_names_from_windows_are_found(tmp_path):
    folder_of(tmp_path, street__a_mp4="x")
    entry = Entry("street\\a.mp4", "x", {})
    assert entry.source(tmp_path) == tmp_path / "street/a.mp4"


def test_a_list_of_other_things_is_skipped_and_reported_once(tmp_path, recwarn):
    folder_of(tmp_path, a_mp4="", a_txt="of a", metadata_csv="file_name,label\na.mp4,0\n")
    assert [entry.caption for entry in read_captions(tmp_path)] == ["of a"]
    (warned,) = recwarn
    assert "Skipped 1 file (a list without columns for file and caption" in str(warned.message)
