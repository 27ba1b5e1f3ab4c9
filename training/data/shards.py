"""Shards: tar files in WebDataset's format, read as a map. (`training.data.packing` says how members are stored.)

A sample is what has one key, the members' name before the first dot:

    000000042.json           caption, fps, size, frames, plan and where it comes from
    000000042.mp4            the clip at 12 times the latent's size; .webp of an image
    000000042.motion.npz     block vectors of a real encode; their source's size is in the .json
    000000042.latents.npy    caches, where they were asked for: half precision, (4, F, h, w), scaled
    000000042.depth.png      grey, the frames one below the other, between the two values in the .json
    000000042.sketch.png     grey, the frames one below the other

Beside each tar lies an index of where its members are, made anew where it is missing or of another tar: of another
size, or with other bytes at its beginning or end. Times do not count, so copies may have any. What all samples of a
shard have in common is told by a member that readers of WebDataset skip, `SETTINGS`.

Nothing in a shard depends on the size of a network's conditions (`ExtractionConfig.condition_scale`): pictures, depth
and sketches lie there at the size that annotators draw at, motion as blocks, and reading brings them to the network's.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import warnings
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.data.order import draw_below
from training.data.packing import checked, unpack_image, unpack_latents, unpack_maps, unpack_vectors, unpack_video
from training.data.sample import BadSample, Sample
from training.data.sample_fields import PICTURED, Form, make, no_motion, reading
from training.data.tars import DAMAGE, TARS, compression, first_name, members_of
from vc_core.conditions import CONDITIONS, drawing_size
from vc_core.disk import WriteError, written_beside
from vc_core.encoders.autoencoder import CHANNELS, FACTOR
from vc_core.errors import UserError
from vc_core.extract.motion.vectors import rasterise_dense, rasterise_points
from vc_core.folders import files_below
from vc_core.parsing import parse_json

FORMAT = 1
OWN = "__vc__/"
"""Members below this are no samples: WebDataset skips names between two underscores."""
SETTINGS, DROPPED = f"{OWN}settings.json", f"{OWN}dropped.json"

ENDS = 2**14
"""Bytes at the beginning of a tar, where its settings and first sample are, and at its end that are its stamp."""

# --- Writing --------------------------------------------------------------------------------------------------------


def write_shard(
    path: Path,
    settings: Mapping[str, Any],
    samples: Iterable[tuple[str, Mapping[str, bytes]]],
    dropped: Sequence[Mapping[str, str]] = (),
) -> None:
    """Writes a shard and its index; the shard whole or not at all.

    Args:
        samples: key, and its members by their endings.
        dropped: `file` and `reason` of those that are not in it; it may be filled while the samples are drawn.
    """
    with written_beside(path) as part:
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
            _add(tar, SETTINGS, _json({"format": FORMAT, **settings}))
            for key, members in samples:
                for ending, data in members.items():
                    _add(tar, f"{key}.{ending}", data)
            _add(tar, DROPPED, _json(list(dropped)))
        part.chmod(0o644)
    _scan(path)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Without a date or an owner: the same samples give the same bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


# --- The index: two lines, what the shard is, and its samples in the order of the tar --------------------------------


def index_path(shard: Path) -> Path:
    return shard.with_suffix(".index.json")


def read_header(shard: Path) -> dict[str, Any]:
    """`count`, `settings` and `dropped` of a shard: the first line of its index, which is made where it must be.

    Raises:
        UserError: it is no shard of `./vc prepare`, or damaged.
    """
    return (_read_index(shard, whole=False) or _scan(shard))[0]


@lru_cache(maxsize=256)
def _table(shard: Path) -> dict[str, Any]:
    """`keys`, and of each sample in `members` ending, offset and size. Raises as `read_header`."""
    return (_read_index(shard, whole=True) or _scan(shard))[1]


def _stamp(shard: Path) -> dict[str, Any]:
    """Tells a tar from others, without reading all of it: one whose members are elsewhere has another size, or others
    of them at its end."""
    with open(shard, "rb", buffering=0) as file:
        ends = file.read(ENDS)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - ENDS))
        ends += file.read(ENDS)
    return {"format": FORMAT, "size": size, "ends": hashlib.sha256(ends).hexdigest()[:16]}


def _read_index(shard: Path, whole: bool) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The two lines of an index, or None where there is none, or that of another tar, or one that is damaged."""
    try:
        with open(index_path(shard), encoding="utf-8") as file:
            header = parse_json(file.readline())
            samples = parse_json(file.readline()) if whole else {}
        fits = header["tar"] == _stamp(shard) and "settings" in header
        if whole:
            places = [(offset, size) for each in samples["members"] for _, offset, size in each]
            inside = all(min(place) >= 0 and sum(place) <= header["tar"]["size"] for place in places)
            fits = fits and inside and len(samples["keys"]) == len(samples["members"]) == header["count"]
        elif fits:
            fits = type(header["count"]) is int and header["count"] >= 0 and isinstance(header["dropped"], list)
        return (header, samples) if fits else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _scan(shard: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two lines of an index from the tar itself, which are written beside it."""
    own: dict[str, Any] = {}
    samples: dict[str, list[tuple[str, int, int]]] = {}
    try:
        if compression(shard):
            raise UserError(f"{shard}: is compressed, and samples are read where they lie: gunzip it.")
        stamp = _stamp(shard)
        members, damage = members_of(shard)
        if damage:
            raise damage
        for member in members:
            if member.name.startswith(OWN):
                own[member.name] = parse_json(member.read())
            else:
                folder, slash, name = member.name.rpartition("/")
                key, _, ending = name.partition(".")
                samples.setdefault(folder + slash + key, []).append((ending, member.offset, member.size))
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror}): check its disk and permissions.") from error
    except DAMAGE as error:
        raise UserError(f"{shard}: is cut off or damaged ({error}): remove it and prepare it again.") from error
    settings = own.get(SETTINGS)
    if samples and not own:
        raise UserError(
            f"{shard}: is a shard of another program, and one of ./vc prepare was expected: ./vc prepare its folder, "
            "or train on a folder that holds shards of other programs alone."
        )
    if DROPPED not in own or not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise UserError(f"{shard}: was not written by this version of ./vc prepare: prepare it again.")
    header = {"tar": stamp, "count": len(samples), "settings": settings, "dropped": own[DROPPED]}
    table = {"keys": list(samples), "members": list(samples.values())}
    try:
        with written_beside(index_path(shard)) as part:
            part.write_bytes(_json(header) + b"\n" + _json(table) + b"\n")
    except WriteError:  # the scan is repeated in every process; told once, however many shards there are
        warnings.warn(
            f"{shard.parent}: has shards without an index, and none can be written there (no permission, or the disk "
            "is full or can only be read): reading starts slowly until it can.",
            stacklevel=2,
        )
    return header, table


# --- Reading as a map -----------------------------------------------------------------------------------------------


def shard_files(folder: Path) -> list[Path]:
    """The shards of a folder and of those in it, in the order of their names; not those that are being written."""
    return [path for path in files_below(folder) if path.name.lower().endswith(TARS)]


def is_ours(shard: Path) -> bool:
    """Whether `./vc prepare` wrote it, as its first member tells."""
    return first_name(shard).startswith(OWN)


class Shards:
    """The samples of a folder of shards, counted in the order of the shards' names and in each as they lie.

    Folders in it count too: large sets are prepared in parts, each on its own machine into its own folder.

    No file stays open, so that threads and forked processes may share it.

    Raises:
        UserError: there are none, they are damaged, or were prepared with different settings.
    """

    def __init__(self, folder: Path):
        self.folder, self.files = Path(folder), shard_files(folder)
        if not self.files:
            raise UserError(f"{folder}: holds no .tar, and shards were expected: make some with ./vc prepare.")
        headers = [read_header(file) for file in self.files]
        self.settings: Mapping[str, Any] = headers[0]["settings"]
        for file, header in zip(self.files, headers, strict=True):
            if header["settings"] != self.settings:
                raise UserError(
                    f"{file}: was prepared with other settings than {self.files[0].name} beside it: prepare both alike "
                    "or move one of them into another folder."
                )
        self.ends = list(accumulate(header["count"] for header in headers))

    def __len__(self) -> int:
        return self.ends[-1]

    def find(self, index: int) -> tuple[Path, str, dict[str, tuple[int, int]]]:
        """Shard and key of a sample, and where each of its members begins and how many bytes it has, by its ending."""
        number = bisect_right(self.ends, index)
        if not 0 <= index < len(self):
            raise IndexError(index)
        table = _table(self.files[number])
        place = index - (self.ends[number - 1] if number else 0)
        members = {ending: (offset, size) for ending, offset, size in table["members"][place]}
        return self.files[number], table["keys"][place], members

    def read(self, index: int, endings: Collection[str]) -> tuple[str, dict[str, bytes]]:
        """Where a sample comes from, for messages, and the bytes of its members of these endings.

        Raises:
            BadSample: it lacks one of them, or the shard cannot be read or is shorter than it was.
        """
        shard, key, members = self.find(index)
        name, found = f"{shard}:{key}", {}
        try:
            with open(shard, "rb") as file:
                for ending in endings:
                    if ending not in members:
                        raise BadSample(f"{name}: has no .{ending}")
                    offset, size = members[ending]
                    file.seek(offset)
                    found[ending] = file.read(size)
                    if len(found[ending]) != size:
                        raise BadSample(f"{name}: its .{ending} is cut off")
        except OSError as error:
            raise BadSample(f"{name}: cannot be read ({error.strerror})") from error
        return name, found


# --- As samples -----------------------------------------------------------------------------------------------------

CACHED = {"depth": ("depth",), "sketch": ("sketch", "single_sketch")}
"""Caches of maps -> the conditions that they give."""

_NAMED = {"motion": "layout", "depth": "method", "sketch": "method", "latents": "fingerprint"}
"""What shards may hold -> the text by which their settings say of what kind it is."""


@dataclass(frozen=True)
class ShardClips:
    """The clips of shards that `./vc prepare` wrote; of fewer frames than they have, windows that begin at random.

    Attributes:
        latents: fingerprint of the run's autoencoder (`training.data.precomputed.fingerprint`), which cached latents
            must be of; None where they are not to be used.

    Raises:
        UserError: the shards were prepared at another size, with too few frames, or for another kind of conditions.
    """

    shards: Shards
    form: Form
    latents: str | None = None

    def __post_init__(self) -> None:
        settings, form, folder = self.shards.settings, self.form, self.shards.folder
        if not _are_sound(settings):
            raise UserError(
                f"{folder}: what its shards say of themselves is not of ./vc prepare: remove their .index.json if only "
                "these were changed, or prepare them again."
            )
        asked, there = ("x".join(map(str, reversed(size))) for size in (form.size, settings["size"]))
        if asked != there:
            raise UserError(f"{folder}: was prepared at {there} and the recipe says {asked}: make them equal.")
        if form.frames > settings["frames"]:
            raise UserError(
                f"{folder}: was prepared with {settings['frames']} frames and the recipe asks for {form.frames}: "
                "prepare it with more or ask for fewer."
            )
        extraction = form.extraction
        trained = {"motion": extraction.motion_layout, "depth": extraction.depth, "sketch": extraction.sketch}
        for name, wanted in trained.items():
            if (about := settings.get(name)) is not None and wanted not in (about[_NAMED[name]], "relative"):
                raise UserError(
                    f"{folder}: its {name} is {about[_NAMED[name]]} and the network's is {wanted}: prepare it again "
                    "with that."
                )
        about = settings.get("latents")
        if self.latents is not None and about is not None and about["fingerprint"] != self.latents:
            raise UserError(
                f"{folder}: its latents are those of another autoencoder ({about.get('file')}) than the run's: prepare "
                "it again with the run's checkpoint, or without --latents."
            )

    def __len__(self) -> int:
        return len(self.shards)

    def sample(self, index: int, kept: Collection[str], generator: torch.Generator) -> Sample:
        """See `training.data.sample.Clips`. Of the sample's members only those that are needed are read."""
        settings, form = self.shards.settings, self.form
        frames, picture = settings["frames"], settings["picture"]
        first = draw_below(frames - form.frames + 1, generator)
        window = slice(first, first + form.frames)
        has_latents = self.latents is not None and settings.get("latents") is not None
        ready = {name for cache, names in CACHED.items() if settings.get(cache) is not None for name in names}
        needed = {
            "json": True,
            picture: not has_latents or not ready.issuperset({*PICTURED, "style"} & set(kept)),
            "latents.npy": has_latents,
            "motion.npz": "motion" in kept and form.frames > 1,
            **{f"{cache}.png": not ready.isdisjoint({*names} & set(kept)) for cache, names in CACHED.items()},
        }
        name, members = self.shards.read(index, [ending for ending, needs in needed.items() if needs])

        with _decoding(name, "json"):
            about = parse_json(members["json"])
            if not isinstance(about["caption"], str):
                raise ValueError("has a caption that is no text")
        made: dict[str, Any] = {"conditions": {}}
        if needed[picture]:
            with _decoding(name, picture):
                if picture == "webp":
                    pictures = unpack_image(members["webp"])
                else:
                    pictures = unpack_video(members["mp4"], Fraction(about["plan"]["rate"]), frames)
                checked(pictures, frames, 3, *form.large)
            made = make(pictures[window, None].float() / 255, form, kept, generator, ready, video=not has_latents)
        conditions = made["conditions"]
        for cache, names in CACHED.items():
            if needed[f"{cache}.png"]:
                with _decoding(name, f"{cache}.png"):
                    maps = unpack_maps(members[f"{cache}.png"], *about[cache], frames)
                    checked(maps, 1, frames, *form.large)
                for each in (each for each in names if each in kept):
                    spatial = CONDITIONS[each].kind == "spatial"
                    conditions[each] = form.fitted(each, maps[:, first : first + 1] if spatial else maps[:, window])
        if "motion" in kept:
            conditions["motion"] = self._motion(name, members, about, first)
        if has_latents:
            height, width = form.size
            with _decoding(name, "latents.npy"):
                latents = unpack_latents(members["latents.npy"])
                checked(latents, CHANNELS, frames, height // FACTOR, width // FACTOR)
            made["latents"] = latents[:, window]
        return Sample(name, text=about["caption"] if "text" in kept else "", **made)

    def _motion(self, name: str, members: Mapping[str, bytes], about: Mapping[str, Any], first: int) -> Tensor:
        """The motion of the window that begins at frame `first`, `(2, F, h, w)`."""
        if self.form.frames == 1:
            return no_motion(self.form)
        with _decoding(name, "motion.npz"):
            source = (about["motion"]["height"], about["motion"]["width"])
            vectors = unpack_vectors(members["motion.npz"], source, first, self.form.frames)
        draw = {"points": rasterise_points, "dense": rasterise_dense}[self.shards.settings["motion"]["layout"]]
        field = draw(vectors, drawing_size("motion", self.form.size))[0]
        return self.form.fitted("motion", field)


def _are_sound(settings: Any) -> bool:
    """Whether the settings of a shard are of this version and whole, whoever wrote them."""
    try:
        numbers = [settings["frames"], *settings["size"]]
        return (
            settings["format"] == FORMAT
            and settings["picture"] in ("mp4", "webp")
            and len(numbers) == 3
            and all(type(number) is int and number > 0 for number in numbers)
            and all(isinstance(settings[name][key], str) for name, key in _NAMED.items() if settings.get(name))
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _decoding(name: str, ending: str) -> AbstractContextManager[None]:
    """Makes a BadSample of whatever a member's decoder raises: of damaged bytes that may be anything. What is done with
    the values stays outside, where our own mistakes are to be seen."""
    return reading(f"{name}: .{ending}", Exception)
