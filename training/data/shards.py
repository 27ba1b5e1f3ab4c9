"""Shards: tar files in WebDataset's format, with random access. (See `training.data.packing` for the members.)

The members of a sample have the same key, their name before the first dot:

    000000042.json           caption, fps, size, frames, plan and source file
    000000042.mp4            the clip at 12 times the latent's size; .webp for an image
    000000042.motion.npz     block vectors of a real encode; their source's size is in the .json
    000000042.latents.npy    caches, if requested: half precision, (4, F, h, w), scaled
    000000042.depth.png      grey, the frames one below the other, between the two values in the .json
    000000042.sketch.png     grey, the frames one below the other

Next to each tar is an index of its members' positions. It is rebuilt if it is missing or belongs to another tar: one
with another size, or other bytes at its beginning or end. File times do not matter, so copies keep their index. The
settings that all samples of a shard share are in a member that WebDataset readers skip, `SETTINGS`.

Nothing in a shard depends on the size of a network's conditions (`ExtractionConfig.condition_scale`): frames, depth and
sketches are stored at the annotators' size, motion as blocks, and reading converts them to the network's size.
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
"""Prefix of members that are not samples: WebDataset skips names between two underscores."""
SETTINGS, DROPPED = f"{OWN}settings.json", f"{OWN}dropped.json"

ENDS = 2**14
"""Bytes at the beginning of a tar (its settings and first sample) and at its end that are hashed in its stamp."""

# --- Writing --------------------------------------------------------------------------------------------------------


def write_shard(
    path: Path,
    settings: Mapping[str, Any],
    samples: Iterable[tuple[str, Mapping[str, bytes]]],
    dropped: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write a shard and its index. The shard is written completely or not at all.

    Args:
        samples: keys, and their members by file extension.
        dropped: `file` and `reason` of dropped clips; may be filled while `samples` is iterated.
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
    """Add a member without a date or an owner, so that the same samples give the same bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


# --- The index: two lines, the shard's header, and its samples in the order of the tar -------------------------------


def index_path(shard: Path) -> Path:
    return shard.with_suffix(".index.json")


def read_header(shard: Path) -> dict[str, Any]:
    """`count`, `settings` and `dropped` of a shard: the first line of its index, which is built if necessary.

    Raises:
        UserError: it is damaged or not a shard of `./vc prepare`.
    """
    return (_read_index(shard, samples=False) or _scan(shard))[0]


@lru_cache(maxsize=256)
def _table(shard: Path) -> dict[str, Any]:
    """`keys`, and in `members` extension, offset and size for each sample. Raises as `read_header`."""
    return (_read_index(shard, samples=True) or _scan(shard))[1]


def _stamp(shard: Path) -> dict[str, Any]:
    """Identify a tar without reading all of it: if its members are elsewhere, its size or its last bytes differ."""
    with open(shard, "rb", buffering=0) as file:
        ends = file.read(ENDS)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - ENDS))
        ends += file.read(ENDS)
    return {"format": FORMAT, "size": size, "ends": hashlib.sha256(ends).hexdigest()[:16]}


def _read_index(shard: Path, samples: bool) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The two lines of an index (the second only with `samples`); None if it is missing, damaged or of another tar."""
    try:
        with open(index_path(shard), encoding="utf-8") as file:
            header = parse_json(file.readline())
            table = parse_json(file.readline()) if samples else {}
        fits = header["tar"] == _stamp(shard) and "settings" in header
        if samples:
            places = [(offset, size) for members in table["members"] for _, offset, size in members]
            inside = all(min(place) >= 0 and sum(place) <= header["tar"]["size"] for place in places)
            fits = fits and inside and len(table["keys"]) == len(table["members"]) == header["count"]
        elif fits:
            fits = type(header["count"]) is int and header["count"] >= 0 and isinstance(header["dropped"], list)
        return (header, table) if fits else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _scan(shard: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Build the two lines of an index from the tar, and write them next to it."""
    own: dict[str, Any] = {}
    samples: dict[str, list[tuple[str, int, int]]] = {}
    try:
        if compression(shard):
            raise UserError(f"Expected an uncompressed shard, but {shard} is compressed. Decompress it with gunzip.")
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
        raise UserError(f"{shard} cannot be read ({error.strerror}). Check its disk and permissions.") from error
    except DAMAGE as error:
        raise UserError(f"{shard} is cut off or damaged ({error}). Remove it and prepare it again.") from error
    settings = own.get(SETTINGS)
    if samples and not own:
        raise UserError(
            f"Expected a shard of ./vc prepare, but {shard} is a shard of another program. Run ./vc prepare on its "
            "folder, or train on a folder that contains only shards of other programs."
        )
    if DROPPED not in own or not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise UserError(f"{shard} was not written by this version of ./vc prepare. Prepare it again.")
    header = {"tar": stamp, "count": len(samples), "settings": settings, "dropped": own[DROPPED]}
    table = {"keys": list(samples), "members": list(samples.values())}
    try:
        with written_beside(index_path(shard)) as part:
            part.write_bytes(_json(header) + b"\n" + _json(table) + b"\n")
    except WriteError:  # every process repeats the scan; one warning for all shards
        warnings.warn(
            f"{shard.parent}: No index can be written for its shards (no permission, or a full or read-only disk). "
            "Reading will start slowly until this is fixed.",
            stacklevel=2,
        )
    return header, table


# --- Reading as a map -----------------------------------------------------------------------------------------------


def shard_files(folder: Path) -> list[Path]:
    """The shards of a folder and its subfolders, in the order of their names, without unfinished ones."""
    return [path for path in files_below(folder) if path.name.lower().endswith(TARS)]


def is_ours(shard: Path) -> bool:
    """Whether `./vc prepare` wrote the shard, judging by its first member."""
    return first_name(shard).startswith(OWN)


class Shards:
    """The samples of a folder of shards, in the order of the shards' names and of the members in each shard.

    Subfolders are included: large sets are prepared in parts, each on its own machine into its own folder.

    No file stays open, so threads and forked processes may share the object.

    Raises:
        UserError: there are no shards, they are damaged, or they were prepared with different settings.
    """

    def __init__(self, folder: Path):
        self.folder, self.files = Path(folder), shard_files(folder)
        if not self.files:
            raise UserError(f"Expected shards, but {folder} contains no .tar. Create shards with ./vc prepare.")
        headers = [read_header(file) for file in self.files]
        self.settings: Mapping[str, Any] = headers[0]["settings"]
        for file, header in zip(self.files, headers, strict=True):
            if header["settings"] != self.settings:
                raise UserError(
                    f"{file} was prepared with other settings than {self.files[0].name} in the same folder. Prepare "
                    "both with the same settings, or move one into another folder."
                )
        self.ends = list(accumulate(header["count"] for header in headers))

    def __len__(self) -> int:
        return self.ends[-1]

    def find(self, index: int) -> tuple[Path, str, dict[str, tuple[int, int]]]:
        """Shard and key of a sample, and offset and size in bytes of each of its members, by extension."""
        number = bisect_right(self.ends, index)
        if not 0 <= index < len(self):
            raise IndexError(index)
        table = _table(self.files[number])
        place = index - (self.ends[number - 1] if number else 0)
        members = {ending: (offset, size) for ending, offset, size in table["members"][place]}
        return self.files[number], table["keys"][place], members

    def read(self, index: int, endings: Collection[str]) -> tuple[str, dict[str, bytes]]:
        """The name of a sample for messages, and the bytes of its members with these extensions.

        Raises:
            BadSample: a member is missing, or the shard cannot be read or has become shorter.
        """
        shard, key, members = self.find(index)
        name, data = f"{shard}:{key}", {}
        try:
            with open(shard, "rb") as file:
                for ending in endings:
                    if ending not in members:
                        raise BadSample(f"{name} has no .{ending}. Remove {shard.name} and prepare it again.")
                    offset, size = members[ending]
                    file.seek(offset)
                    data[ending] = file.read(size)
                    if len(data[ending]) != size:
                        raise BadSample(f"{name}.{ending} is cut off. Remove {shard.name} and prepare it again.")
        except OSError as error:
            raise BadSample(f"{name} cannot be read ({error.strerror}). Check its disk and permissions.") from error
        return name, data


# --- As samples -----------------------------------------------------------------------------------------------------

CACHED = {"depth": ("depth",), "sketch": ("sketch", "single_sketch")}
"""Caches of maps -> their conditions."""

_KINDS = {"motion": "layout", "depth": "method", "sketch": "method", "latents": "fingerprint"}
"""Contents of shards -> the key of their kind in the settings."""


@dataclass(frozen=True)
class ShardClips:
    """The clips of shards that `./vc prepare` wrote. If the form has fewer frames, windows with a random start.

    Attributes:
        latents: fingerprint of the run's autoencoder (`training.data.precomputed.fingerprint`). Cached latents must
            come from it. None if the cached latents are not used.

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
                f"The settings in the shards of {folder} are not from ./vc prepare. Remove the .index.json files if "
                "only those were changed; otherwise prepare the shards again."
            )
        expected, prepared = ("x".join(map(str, reversed(size))) for size in (form.size, settings["size"]))
        if expected != prepared:
            raise UserError(
                f"{folder} was prepared at {prepared}, but {expected} is required. Prepare it again with --size "
                f"{expected}, or use {prepared}."
            )
        if form.frames > settings["frames"]:
            raise UserError(
                f"{folder} was prepared with {settings['frames']} frames, but the recipe requires {form.frames}. "
                "Prepare it with more frames, or set fewer in the recipe."
            )
        extraction = form.extraction
        trained = {"motion": extraction.motion_layout, "depth": extraction.depth, "sketch": extraction.sketch}
        for name, expected in trained.items():
            if (about := settings.get(name)) is not None and expected not in (about[_KINDS[name]], "relative"):
                option = "--depth and the file of MiDaS" if name == "depth" else f"--{name} {expected}"
                raise UserError(
                    f"{folder}: Its {name} is {about[_KINDS[name]]}, but the network requires {expected}. Prepare it "
                    f"again with {option}."
                )
        about = settings.get("latents")
        if self.latents is not None and about is not None and about["fingerprint"] != self.latents:
            raise UserError(
                f"The latents in {folder} are from another autoencoder ({about.get('file')}) than the run's. Prepare "
                "it again with the run's checkpoint, or without --latents."
            )

    def __len__(self) -> int:
        return len(self.shards)

    def sample(self, index: int, inputs: Collection[str], generator: torch.Generator) -> Sample:
        """See `training.data.sample.Clips`. Only the required members of the sample are read."""
        settings, form = self.shards.settings, self.form
        frames, picture = settings["frames"], settings["picture"]
        first = draw_below(frames - form.frames + 1, generator)
        window = slice(first, first + form.frames)
        has_latents = self.latents is not None and settings.get("latents") is not None
        ready = {name for cache, names in CACHED.items() if settings.get(cache) is not None for name in names}
        needed = {
            "json": True,
            picture: not has_latents or not ready.issuperset({*PICTURED, "style"} & set(inputs)),
            "latents.npy": has_latents,
            "motion.npz": "motion" in inputs and form.frames > 1,
            **{f"{cache}.png": not ready.isdisjoint({*names} & set(inputs)) for cache, names in CACHED.items()},
        }
        name, members = self.shards.read(index, [ending for ending, needs in needed.items() if needs])

        with _decoding(name, "json"):
            about = parse_json(members["json"])
            if not isinstance(about["caption"], str):
                raise ValueError("its caption is not a text")
        sample_fields: dict[str, Any] = {"conditions": {}}
        if needed[picture]:
            with _decoding(name, picture):
                if picture == "webp":
                    pictures = unpack_image(members["webp"])
                else:
                    pictures = unpack_video(members["mp4"], Fraction(about["plan"]["rate"]), frames)
                checked(pictures, frames, 3, *form.large)
            video = pictures[window, None].float() / 255
            sample_fields = make(video, form, inputs, generator, ready, video=not has_latents)
        conditions = sample_fields["conditions"]
        for cache, names in CACHED.items():
            if needed[f"{cache}.png"]:
                with _decoding(name, f"{cache}.png"):
                    maps = unpack_maps(members[f"{cache}.png"], *about[cache], frames)
                    checked(maps, 1, frames, *form.large)
                for condition in (condition for condition in names if condition in inputs):
                    own = slice(first, first + 1) if CONDITIONS[condition].kind == "spatial" else window
                    conditions[condition] = form.fitted(condition, maps[:, own])
        if "motion" in inputs:
            conditions["motion"] = self._motion(name, members, about, first)
        if has_latents:
            height, width = form.size
            with _decoding(name, "latents.npy"):
                latents = unpack_latents(members["latents.npy"])
                checked(latents, CHANNELS, frames, height // FACTOR, width // FACTOR)
            sample_fields["latents"] = latents[:, window]
        return Sample(name, text=about["caption"] if "text" in inputs else "", **sample_fields)

    def _motion(self, name: str, members: Mapping[str, bytes], about: Mapping[str, Any], first: int) -> Tensor:
        """The motion of the window that starts at frame `first`, `(2, F, h, w)`."""
        if self.form.frames == 1:
            return no_motion(self.form)
        with _decoding(name, "motion.npz"):
            source = (about["motion"]["height"], about["motion"]["width"])
            vectors = unpack_vectors(members["motion.npz"], source, first, self.form.frames)
        draw = {"points": rasterise_points, "dense": rasterise_dense}[self.shards.settings["motion"]["layout"]]
        field = draw(vectors, drawing_size("motion", self.form.size))[0]
        return self.form.fitted("motion", field)


def _are_sound(settings: Any) -> bool:
    """Whether the settings of a shard are complete and of this version, whoever wrote them."""
    try:
        numbers = [settings["frames"], *settings["size"]]
        return (
            settings["format"] == FORMAT
            and settings["picture"] in ("mp4", "webp")
            and len(numbers) == 3
            and all(type(number) is int and number > 0 for number in numbers)
            and all(isinstance(settings[name][key], str) for name, key in _KINDS.items() if settings.get(name))
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _decoding(name: str, ending: str) -> AbstractContextManager[None]:
    """Turn whatever a member's decoder raises into a BadSample: damaged bytes can raise anything. Code that uses the
    values stays outside, so that our own mistakes are not hidden."""
    return reading(f"{name}.{ending}", Exception, advice="Remove its shard and prepare it again.")
