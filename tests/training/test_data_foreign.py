"""Shards of other programs, written here in the same way as those programs: reading, training, preparing."""

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.clips import EDGES, EVERYTHING, FRAMES, SIZE, generator, same
from training.data.caption_lists import Entry
from training.data.domains import open_clips
from training.data.folder import FolderClips, read_captions
from training.data.other_shards import grouped, read_shards
from training.data.prepare import main
from training.data.sample import BadSample
from training.data.sample_fields import Form
from training.data.shard_writing import PrepareOptions, prepare
from training.data.shards import ShardClips, Shards
from training.data.tars import Member, first_name, members_of
from training.recipe import Domain
from vc_core.config import Config
from vc_core.errors import UserError

FORM = Form(SIZE, FRAMES, EDGES, style_size=24)


def write_tar(path, members, compress=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            data = data.encode() if isinstance(data, str) else data
            info.size, info.mtime, info.uname = len(data), 1_700_000_000, "bigdata"
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes((compress or bytes)(buffer.getvalue()))
    return path


def about(key, caption, **more):
    return json.dumps({"url": "https://a.example/v", "caption": caption, "key": key, "status": "success",
                       "error_message": None, **more}, indent=4)  # fmt: skip


def read(folder):
    return [(entry.file, entry.caption) for entry in read_captions(folder)]


def member(name, offset=0, size=1):
    return Member(None, name, offset, size)


@pytest.fixture
def clip(videos):
    return (videos / "right.mp4").read_bytes()


def picture(color, ending):
    buffer = io.BytesIO()
    Image.new("RGB", (80, 64), color).save(buffer, {"jpg": "JPEG"}.get(ending, ending))
    return buffer.getvalue()


# --- Other programs' shards ------------------------------------------------------------------------------------------


def test_shards_of_video2dataset_give_the_samples_of_the_files(videos, tmp_path):
    """A .txt and a .json for each sample, only texts for failed downloads, a table and statistics next to the tar."""
    shards = tmp_path / "shards"
    names = ["right", "left", "down"]
    members = {"00003.txt": "lost", "00003.json": about("00003", "lost", status="failed_to_download")}
    for number, name in enumerate(names):
        key = f"0000{number}_00001"
        members[f"{key}.mp4"] = (videos / f"{name}.mp4").read_bytes()
        members[f"{key}.txt"] = f"goes {name}"
        members[f"{key}.json"] = about(key, f"goes {name}", clips=[[0.0, 1.0]], yt_meta_dict={"info": {"title": "t"}})
    write_tar(shards / "00000.tar", members)
    for name in ("00000.parquet", "00000_stats.json"):
        (shards / name).write_bytes(b"{}")
    with pytest.warns(UserWarning) as warned:
        entries = read_captions(shards)
    messages = " ".join(str(warning.message) for warning in warned)
    assert "Skipped 1 sample without a video" in messages and "00000.parquet" in messages
    assert [(e.file, e.caption) for e in entries] == [
        (f"00000.tar:0000{n}_00001.mp4", f"goes {name}") for n, name in enumerate(names)
    ]
    of_files = [Entry(f"{name}.mp4", f"goes {name}", {}) for name in names]
    ours, theirs = FolderClips(shards, entries, FORM), FolderClips(videos, of_files, FORM)
    for index in range(len(names)):
        sample, expected = ours.sample(index, EVERYTHING, generator(3)), theirs.sample(index, EVERYTHING, generator(3))
        assert sample.text == f"goes {names[index]}" and same(sample, replace(expected, key=sample.key))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_shards_of_img2dataset_give_images(tmp_path, ending):
    members = {}
    for number, color in enumerate([(255, 0, 0), (0, 0, 255)]):
        key = f"00000000{number}"
        members |= {f"{key}.{ending}": picture(color, ending), f"{key}.txt": f"color {number}",
                    f"{key}.json": about(key, f"color {number}", width=80, sha256="0")}  # fmt: skip
    write_tar(tmp_path / "00000.tar", members)
    data = FolderClips(tmp_path, read_captions(tmp_path), Form(SIZE, 1, EDGES, 24))
    sample = data.sample(1, EVERYTHING, generator())
    assert sample.text == "color 1" and sample.video.shape == (3, 1, *SIZE)
    assert (sample.video - torch.tensor([0, 0, 1.0]).view(3, 1, 1, 1)).abs().max() < 0.02
    with pytest.raises(UserError, match=r"00000\.tar:000000000\S* is an image"):
        FolderClips(tmp_path, read_captions(tmp_path), FORM)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"1.mp4": b"v", "1.txt": "x"}, {"1.mp4": "x"}),
        ({"1.MP4": b"v", "1.TXT": "x"}, {"1.MP4": "x"}),
        ({"1.json": '{"caption": "x"}', "1.mp4": b"v"}, {"1.mp4": "x"}),
        ({"1.mkv": b"v", "1.json": '{"text": "x"}'}, {"1.mkv": "x"}),
        ({"1.webm": b"v", "1.caption": "x"}, {"1.webm": "x"}),
        ({"1.mp4": b"v", "1.json": '{"Caption": ["", "x", "y"]}'}, {"1.mp4": "x"}),
        ({"1.mp4": b"v", "1.txt": "['x', 'y']", "1.json": '{"caption": ["x", "y"]}'}, {"1.mp4": "x"}),
        ({"1.mp4": b"v", "1.txt": "", "1.json": '{"prompt": "x"}'}, {"1.mp4": "x"}),
        # Keys with dots, which WebDataset's rule would merge into one sample.
        ({"a_0.5.mp4": b"v", "a_0.5.txt": "x", "a_0.7.mp4": b"v", "a_0.7.txt": "y"},
         {"a_0.5.mp4": "x", "a_0.7.mp4": "y"}),
        ({"a_0.5.mp4": b"v", "a_0.5.json": '{"caption": "x"}'}, {"a_0.5.mp4": "x"}),
        # WebDataset's rule: equal up to the first dot.
        ({"1.video.mp4": b"v", "1.caption.txt": "x"}, {"1.video.mp4": "x"}),
        ({"1.mp4": b"v", "1.en.txt": "x"}, {"1.mp4": "x"}),
        ({"1.left.jpg": b"v", "1.video.mp4": b"v", "1.txt": "x"}, {"1.video.mp4": "x"}),
        # Other members of a sample.
        ({"1.mp4": b"v", "1.m4a": b"s", "1.npy": b"n", "1.cls": "3", "1.txt": "x"}, {"1.mp4": "x"}),
        ({"1.jpg": b"p", "1.mp4": b"v", "1.txt": "x"}, {"1.mp4": "x"}),
        ({"1.jpg": b"p", "1.seg.png": b"p", "1.txt": "x"}, {"1.jpg": "x"}),
        # Folders in the tar with equal names, and files of operating systems and WebDataset.
        ({"a/1.mp4": b"v", "a/1.txt": "x", "b.c/1.mp4": b"v", "b.c/1.txt": "y"}, {"a/1.mp4": "x", "b.c/1.mp4": "y"}),
        ({"./1.mp4": b"v", "./1.txt": "x", "./._1.mp4": b"m", "__MACOSX/1.mp4": b"m"}, {"1.mp4": "x"}),
        ({"__info__.json": "{}", "1.mp4": b"v", "1.txt": "x"}, {"1.mp4": "x"}),
    ],
)  # fmt: skip
def test_samples_are_recognized_by_their_names(tmp_path, members, expected):
    write_tar(tmp_path / "0.tar", members)
    assert dict(read(tmp_path)) == {f"0.tar:{name}": caption for name, caption in expected.items()}


def test_parts_of_a_sample_may_lie_anywhere_in_the_tar():
    names = ["2.txt", "1.mp4", "2.mp4", "1.txt"]
    samples, without, aside = grouped([member(name) for name in names])
    assert [(media.name, [text.name for text in texts.values()]) for media, texts in samples] == [
        ("1.mp4", ["1.txt"]), ("2.mp4", ["2.txt"]),
    ]  # fmt: skip
    assert without == 0 and aside == []


def test_a_video_without_a_text_among_others_with_a_text_is_reported(tmp_path):
    names = {"a_0.5.mp4": b"v", "a_0.5.txt": "x", "a_0.7.mp4": b"v"}
    write_tar(tmp_path / "0.tar", names)
    with pytest.warns(UserWarning, match=r"Skipped 1 member without a text.*0\.tar:a_0\.7\.mp4"):
        assert read(tmp_path) == [("0.tar:a_0.5.mp4", "x")]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_is_read(tmp_path, form, clip):
    name = "a" * 90 if form == tarfile.USTAR_FORMAT else "ä" * 150
    write_tar(tmp_path / "0.tar", {f"{name}.mp4": clip, f"{name}.txt": "x"}, format=form)
    (entry,) = read_captions(tmp_path)
    assert entry.member.read() == clip and entry.caption == "x"


@pytest.mark.parametrize(
    ("name", "compress"),
    [("0.tar.gz", gzip.compress), ("0.tgz", gzip.compress), ("0.tar", gzip.compress), ("0.tar.bz2", bz2.compress),
     ("0.tar.xz", lzma.compress)],
)  # fmt: skip
def test_compressed_tars_are_read_in_any_order_and_thread(videos, tmp_path, name, compress):
    data = {key: (videos / f"{key}.mp4").read_bytes() for key in ("right", "left", "down")}
    write_tar(tmp_path / name, {f"{k}{e}": v for k, d in data.items() for e, v in ((".mp4", d), (".txt", k))}, compress)
    with pytest.warns(UserWarning, match="1 shard is compressed"):
        (clips,) = open_clips(Domain("shards", tmp_path, frames=FRAMES), SIZE, Config(), {}).values()
    assert isinstance(clips, FolderClips)
    members = {entry.caption: entry.member for entry in clips.entries}
    for key in ("down", "right", "left", "right"):
        assert members[key].read() == data[key]
    wrong = []

    def reads(key):
        wrong.extend(1 for _ in range(20) if members[key].read() != data[key])

    threads = [threading.Thread(target=reads, args=(key,)) for key in data]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_of_two_members_with_one_name_the_last_counts(tmp_path):
    path = write_tar(tmp_path / "0.tar", {"1.mp4": b"v", "1.txt": "old"})
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("1.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"new"))
    assert read(tmp_path) == [("0.tar:1.mp4", "new")]


# --- Damage ---------------------------------------------------------------------------------------------------------


def three(clip):
    return {f"{n}{ending}": data for n in range(3) for ending, data in ((".mp4", clip), (".txt", f"text {n}"))}


@pytest.mark.parametrize("compress", [None, gzip.compress])
def test_samples_before_the_damage_of_a_tar_are_used_and_the_damage_is_reported(tmp_path, clip, compress):
    intact = write_tar(tmp_path / "0.tar", three(clip), compress).read_bytes()
    write_tar(tmp_path / "1.tar", {"9.mp4": clip, "9.txt": "text 9"})
    (tmp_path / "2.tar").write_bytes(b"")
    lengths = set()
    for length in (len(intact) * 2 // 3, len(intact) // 2, 100):
        (tmp_path / "0.tar").write_bytes(intact[:length])
        with pytest.warns(UserWarning, match=r"2 shards are cut off or damaged.*0\.tar"):
            samples = read(tmp_path)
        assert samples[-1] == ("1.tar:9.mp4", "text 9")
        lengths.add(len(samples))
    assert max(lengths) > 1


def test_a_tar_that_ends_between_members_or_continues_with_noise_is_reported(tmp_path, clip):
    path = write_tar(tmp_path / "0.tar", three(clip))
    second = next(member for member in members_of(path)[0] if member.name == "1.mp4")
    intact = path.read_bytes()
    assert members_of(path)[1] is None
    for damaged in (intact[: second.offset - 512], intact[: second.offset - 512] + b"noise" * 4000):
        path.write_bytes(damaged)
        members, damage = members_of(path)
        assert [member.name for member in members] == ["0.mp4", "0.txt"] and "the end mark at byte" in str(damage)


def test_members_that_cannot_be_used_are_faults_and_the_others_are_used(tmp_path, clip):
    members = three(clip) | {"3.mp4": clip, "3.txt": b"caf\xe9", "4.mp4": b"", "4.txt": "empty", "5.mp4": clip,
                             "5.json": about("5", "x", status="failed_to_subsample", error_message="why"),
                             "6.mp4": clip, "6.json": "[" * 100_000, "7.mp4": clip, "7.json": '{"url": "x"}',
                             "8.mp4": clip, "8.txt": "x" * (2**20 + 1), "9.mp4": clip}  # fmt: skip
    write_tar(tmp_path / "0.tar", members)
    entries = read_captions(tmp_path)
    faults = {entry.file.rpartition(":")[2]: entry.fault for entry in entries if entry.fault}
    assert set(faults) == {f"{n}.mp4" for n in range(3, 10)}
    assert "failed_to_subsample: why" in faults["5.mp4"] and "empty" in faults["4.mp4"]
    data = FolderClips(tmp_path, entries, FORM)
    assert data.sample(0, (), generator()).video is not None
    with pytest.raises(BadSample, match=r"0\.tar:5\.mp4: .*failed_to_subsample"):
        data.sample(5, (), generator())
    with pytest.warns(UserWarning, match="Skipped 7 of 10 clips"):
        (clips,) = open_clips(Domain("shards", tmp_path, frames=FRAMES), SIZE, Config(), {}).values()
    assert len(clips) == 3


def test_bytes_that_are_not_a_video_are_a_bad_sample_with_their_name(tmp_path, clip):
    write_tar(tmp_path / "0.tar", {"0.mp4": b"noise" * 100, "0.txt": "x", "1.jpg": b"noise", "1.txt": "y"})
    entries = read_captions(tmp_path)
    for frames, index in ((FRAMES, 0), (1, 1)):
        data = FolderClips(tmp_path, entries[index : index + 1], Form(SIZE, frames, EDGES, 24))
        with pytest.raises(BadSample, match=rf"0\.tar:{index}\."):
            data.sample(0, ("motion",), generator())


@pytest.mark.parametrize("compress", [None, gzip.compress])
@pytest.mark.filterwarnings("ignore")
def test_damaged_shards_give_entries_or_an_error(tmp_path, compress):
    random = np.random.default_rng(5)
    members = {
        f"{n}{e}": d for n in range(4) for e, d in ((".mp4", b"v" * 700), (".txt", "x"), (".json", about("0", "x")))
    }
    for number in range(150):
        path = write_tar(tmp_path / f"{number}.tar", members)
        data = bytearray(path.read_bytes())
        for place in random.integers(len(data) if number % 2 else 600, size=random.integers(1, 5)):
            data[place] ^= 1 << random.integers(8)
        data = (compress or bytes)(data)
        path.write_bytes(data if number % 3 else data[: random.integers(len(data))])
        try:
            entries = read_shards([path], tmp_path)
        except UserError as error:
            assert "contain no videos or images" in str(error)
            continue
        for entry in entries:
            try:
                source = entry.source(tmp_path)
            except UserError:
                continue
            assert len(source.open().getvalue()) == entry.member.size


def test_impossible_sizes_are_reported(tmp_path, clip):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, size in (("0.mp4", 3), ("0.txt", 3), ("1.mp4", 2**40)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(b"abc")) if size == 3 else tar.fileobj.write(info.tobuf())
    (tmp_path / "0.tar").write_bytes(buffer.getvalue())
    with pytest.warns(UserWarning, match=r"1\.mp4 extends beyond the end"):
        assert read(tmp_path) == [("0.tar:0.mp4", "abc")]
    (tmp_path / "0.tar").write_bytes(gzip.compress(buffer.getvalue()))
    with pytest.raises(UserError, match=r"1024\.0 GiB"):
        Member(tmp_path / "0.tar", "1.mp4", 3000, 2**40).read()


def _header(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_would_fill_the_memory_is_damage(tmp_path, clip, kind):
    path = write_tar(tmp_path / "0.tar", {"0.mp4": clip, "0.txt": "x"})
    size = 2 * 2**20
    data = path.read_bytes().rstrip(b"\0")
    data += bytes(-len(data) % 512) + _header("long", size, kind) + bytes(size)
    path.with_name("0.tar.gz").write_bytes(gzip.compress(data + _header("1.txt", 0) + bytes(1024)))
    path.unlink()
    with pytest.warns(UserWarning, match=rf"0\.tar\.gz \(a header has {size} bytes\)"):
        assert read(tmp_path) == [("0.tar.gz:0.mp4", "x")]


def test_a_member_that_would_fill_the_memory_is_refused(tmp_path, clip, monkeypatch):
    monkeypatch.setattr("training.data.tars.UNPACKED", 2**17)
    members = {"0.mp4": clip, "0.txt": "x", "1.mp4": bytes(2**20), "1.txt": "y"}
    path = write_tar(tmp_path / "0.tar.gz", members, gzip.compress)
    by_name = {member.name: member for member in members_of(path)[0]}
    assert by_name["0.mp4"].read() == clip
    with pytest.raises(UserError, match=r"1\.mp4 has .* GiB\. Expected at most .* GiB"):
        by_name["1.mp4"].read()


@pytest.mark.parametrize("name", ["", ".", "./", "/"])
def test_members_without_a_name_are_skipped(name):
    path = Path("0.tar")
    samples, _, _ = grouped([Member(path, member, 0, 1) for member in (name, "0.mp4", "0.txt")])
    assert [(member.name, [*texts]) for member, texts in samples] == [("0.mp4", [".txt"])]


def test_a_tar_that_has_changed_is_a_bad_sample(tmp_path, clip):
    path = write_tar(tmp_path / "0.tar", {"0.mp4": clip, "0.txt": "x"})
    data = FolderClips(tmp_path, read_captions(tmp_path), FORM)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(BadSample, match="is cut off"):
        data.sample(0, (), generator())


def test_shards_without_samples_are_refused(tmp_path):
    write_tar(tmp_path / "0.tar", {"notes.md": "x", "1.npy": "x"})
    with pytest.raises(UserError, match="contain no videos or images"):
        read_captions(tmp_path)
    with pytest.raises(UserError, match="contain no videos or images"):
        open_clips(Domain("shards", tmp_path, frames=FRAMES), SIZE, Config(), {})
    assert first_name(tmp_path / "0.tar") == "notes.md" and first_name(tmp_path / "none") == ""


def test_shards_of_two_programs_are_distinguished(prepared, copied, clip):
    with pytest.raises(UserError, match=r"is a shard of \./vc prepare"):
        read_captions(prepared)
    write_tar(copied / "00000.tar", {"0.mp4": clip, "0.txt": "x"})
    with pytest.raises(UserError, match=r"00000\.tar is a shard of another program"):
        Shards(copied)
    gz = copied / "shard-000000.tar"
    (copied / "00000.tar").unlink()
    gz.write_bytes(gzip.compress(gz.read_bytes()))
    with pytest.raises(UserError, match="is compressed"):
        Shards(copied)


def test_files_with_texts_come_before_tars_next_to_them(tmp_path, clip):
    write_tar(tmp_path / "backup.tar", {"0.mp4": clip, "0.txt": "x"})
    (tmp_path / "a.mp4").write_bytes(clip)
    (tmp_path / "a.txt").write_text("of a")
    with pytest.warns(UserWarning, match=r"backup\.tar"):
        assert read(tmp_path) == [("a.mp4", "of a")]


# --- Prepared and trained on ----------------------------------------------------------------------------------------


def prepared_from(folder, out, jobs="1"):
    size = f"{SIZE[1]}x{SIZE[0]}"
    return main([str(folder), "-o", str(out), "--frames", str(FRAMES), "--size", size, "--jobs", jobs])


def test_shards_are_prepared_repeatedly_with_the_output_among_them(videos, tmp_path, capsys, clip):
    shards = tmp_path / "shards"
    write_tar(shards / "a" / "00000.tar", three(clip) | {"bad.mp4": b"noise", "bad.txt": "x"})
    write_tar(tmp_path / "elsewhere" / "1.tar.gz", {"z.mp4": clip, "z.json": about("z", "text z")}, gzip.compress)
    (shards / "linked").symlink_to(tmp_path / "elsewhere")
    for _ in range(3):
        assert prepared_from(shards, shards / "out") == 0
        printed = capsys.readouterr()
        assert "4 clips in 1 shard, " in printed.out and "1 clip was dropped" in printed.out
        assert "a/00000.tar:bad.mp4" in printed.out
        for name in ("Thumbs.db", "desktop.ini", "._00000.tar", ".DS_Store"):
            (shards / name).write_bytes(b"noise")
            (shards / "out" / name).write_bytes(b"noise")
    prepared = Shards(shards / "out")
    records = [json.loads(prepared.read(n, ["json"])[1]["json"]) for n in range(len(prepared))]
    assert [record["caption"] for record in records] == ["text 0", "text 1", "text 2", "text z"]
    assert records[3]["file"] == "linked/1.tar.gz:z.mp4"
    # The clips are the same as those from the files themselves.
    sample = ShardClips(prepared, Form(SIZE, FRAMES, EDGES, 24)).sample(0, ("motion",), generator())
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "0.mp4").write_bytes(clip)
    prepare(PrepareOptions(tmp_path / "files", FRAMES, SIZE), [Entry("0.mp4", "x", {})], tmp_path / "of_files")
    plan = json.loads(Shards(tmp_path / "of_files").read(0, ["json"])[1]["json"])["plan"]
    assert plan["rate"] == records[0]["plan"]["rate"] and sample.conditions["motion"].abs().max() > 1


@pytest.mark.slow
def test_compressed_shards_are_prepared_by_several_processes(tmp_path, clip):
    write_tar(tmp_path / "in" / "0.tgz", three(clip), gzip.compress)
    for out, jobs in (("one", "1"), ("two", "2")):
        command = [sys.executable, "-m", "training.data.prepare", tmp_path / "in", "-o", tmp_path / out, "--jobs", jobs]
        size = f"{SIZE[1]}x{SIZE[0]}"
        assert subprocess.run([*command, "--frames", str(FRAMES), "--size", size], check=False).returncode == 0
    assert (tmp_path / "one/shard-000000.tar").read_bytes() == (tmp_path / "two/shard-000000.tar").read_bytes()


def test_read_shards_names_members_by_their_path_below_the_folder(tmp_path, clip):
    tar = write_tar(tmp_path / "part" / "0.tar", {"a/1.mp4": clip, "a/1.txt": "x"})
    (entry,) = read_shards([tar], tmp_path)
    assert entry.file == "part/0.tar:a/1.mp4" and entry.name(tmp_path) == entry.file and not entry.is_image(tmp_path)
