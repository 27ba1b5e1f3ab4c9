"""The record in an output file, and how to repeat a run from it."""

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
from ..checkpoint.reading import BUNDLED_LORA
from ..checkpoint.tensors import DTYPES
from ..composer import choose_device, choose_dtypes
from ..errors import UserError, about, brief, spelled
from ..folders import exists, files_below
from ..parsing import parse_json
from ..progress import Progress
from ..video.metadata import read_metadata
from .setting_types import BUNDLED
from .settings import Settings, as_option

VERSION = "0.1.0"
"""Version of this package, as in pyproject.toml."""

KEY = "videocomposer"
"""Metadata key of the record in an output file."""

_FORMAT = 1
_LIBRARIES = ("torch", "av", "diffusers")


@dataclass(frozen=True)
class Record:
    """How an output file was composed. The same settings, inputs, versions and machine give the same bytes.

    Attributes:
        settings: all settings, filled in with the values of the checkpoint and of the source; without output names.
        inputs: by setting, `path` (absolute, or `bundled`), `name` and `sha256` of each file.
        methods: by condition, how it was extracted if there was a choice, for example by which network.
        versions: of this package and of the libraries that influence the output's bytes.
        machine: device, dtypes and number of threads.
    """

    settings: Settings
    inputs: Mapping[str, list[dict[str, str]]]
    methods: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]

    def to_json(self) -> str:
        """Return one line of ASCII, the same for the same record."""
        data = {"format": _FORMAT, "settings": self.settings.to_mapping(), "inputs": self.inputs, "made": self.methods}
        return json.dumps({**data, "versions": self.versions, "machine": self.machine})

    @staticmethod
    def from_json(text: str) -> "Record":
        """Read the output of `to_json`. Raises `UserError`."""
        try:
            data = parse_json(text)
            if data["format"] != _FORMAT:
                raise UserError("Another version of this program wrote the file. Update the program.")
            inputs = {
                name: [{key: str(file[key]) for key in ("path", "name", "sha256")} for file in files]
                for name, files in data["inputs"].items()
            }
            settings = Settings.from_mapping(data["settings"])
            return Record(settings, inputs, dict(data["made"]), dict(data["versions"]), dict(data["machine"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError("The settings in the file are damaged. Pass another file, or a settings .yaml.") from error


def make_record(
    settings: Settings, methods: Mapping[str, Mapping[str, Any]], progress: Progress | None = None
) -> Record:
    """Create the record of a composition with filled-in settings. Reads every input to compute its SHA-256."""
    settings = dataclasses.replace(settings, out=None, sheet=None).with_paths(lambda path: Path(os.path.abspath(path)))

    def entry(path: Path, place: str) -> dict[str, str]:
        return {"path": place, "name": path.name, "sha256": file_hash(path, progress)}

    def place(path: Path) -> str:
        return BUNDLED if path == BUNDLED_LORA else str(path)

    inputs = {name: [entry(path, place(path)) for path in paths] for name, paths in settings.inputs().items()}
    if settings.checkpoint is None:
        inputs["checkpoint"] = [entry(BUNDLED_FILE, BUNDLED)]
    return Record(settings, inputs, methods, versions(), machine(settings))


def read_record(path: str | Path) -> Record:
    """Read the record in an output video, folder or sheet. Raises `UserError` if there is none."""
    with about(path):
        texts = read_metadata(path)
        if KEY not in texts:
            raise UserError("The file contains no settings. Pass an output of ./vc compose, or a .yaml of settings.")
        return Record.from_json(texts[KEY])


def with_current_inputs(
    settings: Settings, record: Record, source: Path, options: Collection[str], progress: Progress | None = None
) -> Settings:
    """Return the settings with the current paths of the record's inputs.

    An input is searched for at its old path, then in the folder of `source`.

    Args:
        settings: the record's settings, some of them changed. Changed inputs are not searched for.
        source: the output file that contains the record.
        options: settings that the user set again. They are not searched for either.

    Raises:
        UserError: an input is missing or has changed; the message names it.
    """
    paths_by_name: dict[str, Any] = {}
    for name, files in record.inputs.items():
        previous = getattr(record.settings, name)
        if name not in options and getattr(settings, name) == previous:
            paths = tuple(_find(name, file, source, progress) for file in files)
            if isinstance(previous, dict):
                paths_by_name[name] = dict(zip(paths, previous.values(), strict=True))
            elif isinstance(previous, tuple):
                paths_by_name[name] = paths
            else:
                paths_by_name[name] = previous and paths[0]  # None: the bundled checkpoint
    return dataclasses.replace(settings, **paths_by_name)


def _find(name: str, file: Mapping[str, str], source: Path, progress: Progress | None) -> Path:
    option = as_option(name)
    bundled = BUNDLED_LORA if name == "lora" else BUNDLED_FILE
    old = bundled if file["path"] == BUNDLED else Path(file["path"])
    existing = [path for path in (old, source.absolute().parent / file["name"]) if exists(path)]
    for path in existing:
        if file_hash(path, progress) == file["sha256"]:
            return path
    if existing:
        raise UserError(
            f"{existing[0]} has changed since {source} was composed: its SHA-256 differs. Put the old file there or "
            f"next to {source.name}, or set {option} to use another file."
        )
    raise UserError(
        f"{brief(str(old), 400)}, an input of {source}, does not exist. Put {spelled(file['name'])} there or next to "
        f"{source.name}, or set {option} to use another file."
    )


def differences(record: Record, settings: Settings) -> list[str]:
    """List the versions and machine properties that have changed; empty if a repeated run gives the same bytes."""
    return [
        f"{name} was {old}, is {new.get(name, 'none')}"
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
    """Return the properties of the machine that influence the output's last bits."""
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
    """Return the SHA-256 of a file. It is cached in the process while the file's size and time stay the same.

    For a folder: the SHA-256 of the names and sums of its files.
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
