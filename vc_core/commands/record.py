"""What a produced file says of how it was made, and what must be there to make it again."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.files import sha256
from ..checkpoint.reading import BUNDLED as BUNDLED_FILE
from ..checkpoint.tensors import DTYPES
from ..composer import choose_device, choose_dtypes
from ..errors import UserError, about, brief, spelled
from ..folders import exists, files_below
from ..parsing import parse_json
from ..progress import Progress
from ..video.metadata import read_metadata
from .settings import BUNDLED, Settings, as_option

VERSION = "0.1.0"
"""Of this package, as in pyproject.toml."""

KEY = "videocomposer"
"""Under which a produced file holds its record."""

_FORMAT = 1
_LIBRARIES = ("torch", "av", "diffusers")


@dataclass(frozen=True)
class Record:
    """How a file was made. The same settings, inputs, versions and machine give the same bytes.

    Attributes:
        settings: with everything filled in that a checkpoint or a source decided; without the names of the outputs.
        inputs: by setting, for each of its files `path` (absolute, or `bundled`), `name` and `sha256`.
        made: by condition, how it was made where that was decided, for instance by which network.
        versions: of this package and of the libraries that decide about numbers and bytes.
        machine: device, types and number of threads.
    """

    settings: Settings
    inputs: Mapping[str, list[dict[str, str]]]
    made: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]

    def to_json(self) -> str:
        """JSON in one line of ASCII, the same for the same record."""
        settings = self.settings.to_mapping()
        return json.dumps({"format": _FORMAT, **vars(self), "settings": settings})

    @staticmethod
    def from_json(text: str) -> "Record":
        """What `to_json` wrote. Raises `UserError`."""
        try:
            data = parse_json(text)
            if data["format"] != _FORMAT:
                raise UserError("it was made by another version of this program: update the program.")
            inputs = {
                name: [{key: str(file[key]) for key in ("path", "name", "sha256")} for file in files]
                for name, files in data["inputs"].items()
            }
            settings = Settings.from_mapping(data["settings"])
            return Record(settings, inputs, dict(data["made"]), dict(data["versions"]), dict(data["machine"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError("the settings in it are damaged: give another file, or its settings as YAML.") from error


def make_record(settings: Settings, made: Mapping[str, Mapping[str, Any]], progress: Progress | None = None) -> Record:
    """The record of a composition whose settings are filled in. Reads every input, for its SHA-256."""
    settings = dataclasses.replace(settings, out=None, sheet=None).with_paths(lambda path: Path(os.path.abspath(path)))

    def told(path: Path, place: str) -> dict[str, str]:
        return {"path": place, "name": path.name, "sha256": file_hash(path, progress)}

    inputs = {name: [told(path, str(path)) for path in paths] for name, paths in settings.inputs().items()}
    if settings.checkpoint is None:
        inputs["checkpoint"] = [told(BUNDLED_FILE, BUNDLED)]
    return Record(settings, inputs, made, versions(), machine(settings))


def read_record(path: str | Path) -> Record:
    """The record in a produced video, folder or sheet. Raises `UserError` where it has none."""
    with about(path):
        found = read_metadata(path)
        if KEY not in found:
            raise UserError("it says nothing of how it was made: give a file that ./vc compose wrote, or a .yaml.")
        return Record.from_json(found[KEY])


def with_found_inputs(
    settings: Settings, record: Record, source: Path, given: Collection[str], progress: Progress | None = None
) -> Settings:
    """Settings with a record's inputs where they are now: at their old place, or beside the produced file, `source`.

    Args:
        settings: the record's, some of them changed: what is another input now is not looked for.
        given: nor is what was given anew, if only the same.

    Raises:
        UserError: an input that is missing or has another content, by its name.
    """
    found: dict[str, Any] = {}
    for name, files in record.inputs.items():
        was = getattr(record.settings, name)
        if name not in given and getattr(settings, name) == was:
            paths = tuple(_find(name, file, source, progress) for file in files)
            if isinstance(was, dict):
                found[name] = dict(zip(paths, was.values(), strict=True))
            else:
                found[name] = paths if isinstance(was, tuple) else was and paths[0]  # None: the bundled checkpoint
    return dataclasses.replace(settings, **found)


def _find(name: str, file: Mapping[str, str], source: Path, progress: Progress | None) -> Path:
    option = as_option(name)
    old = BUNDLED_FILE if file["path"] == BUNDLED else Path(file["path"])
    there = [path for path in (old, source.absolute().parent / file["name"]) if exists(path)]
    for path in there:
        if file_hash(path, progress) == file["sha256"]:
            return path
    if there:
        raise UserError(
            f"{there[0]} is not what it was when {source} was made (its SHA-256 is another one): put the old file "
            f"there or beside {source.name}, or give {option} to use another one."
        )
    raise UserError(
        f"{brief(str(old), 400)} is missing, which {source} was made with, and {spelled(file['name'])} is not beside "
        f"it either: put it there, or give {option} to use another one."
    )


def differences(record: Record, settings: Settings) -> list[str]:
    """What is another than it was, in words; empty where a repetition by these settings gives the same bytes."""
    return [
        f"{name} {old} before, {new.get(name, 'none')} now"
        for olds, new in ((record.versions, versions()), (record.machine, machine(settings)))
        for name, old in olds.items()
        if new.get(name) != old
    ]


def versions() -> dict[str, str]:
    return {"vc_core": VERSION, **{name: _version(name) for name in _LIBRARIES}}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def machine(settings: Settings) -> dict[str, Any]:
    """What the composition runs on, as far as it decides about the last bits."""
    device = choose_device(settings.device)
    names = {dtype: name for name, dtype in DTYPES.items()}
    stored, computed = choose_dtypes(device, settings.dtype, settings.compute)
    processor = torch.backends.cpu.get_cpu_capability()
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    return {
        "device": device.type,
        "processor": processor,
        "dtype": names[stored],
        "compute": names[computed],
        "threads": torch.get_num_threads(),
    }


_hashes: dict[tuple[str, int, int], str] = {}


def file_hash(path: Path, progress: Progress | None = None) -> str:
    """The SHA-256 of a file, computed once in a process for as long as its size and time stay the same.

    Of a folder, that of the names and sums of the files in it.
    """
    if path.is_dir():
        files = files_below(path, hidden=True, warn=False)
        sums = "".join(f"{file.relative_to(path)} {file_hash(file, progress)}\n" for file in files)
        return hashlib.sha256(sums.encode()).hexdigest()
    stat = path.stat()
    key = (os.path.abspath(path), stat.st_size, stat.st_mtime_ns)
    if key not in _hashes:
        _hashes[key] = sha256(path, progress)
    return _hashes[key]
