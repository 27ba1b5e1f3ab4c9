"""Captions by a network of transformers in a local folder, such as BLIP or GIT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from vc_core.errors import UserError, reason

LONGEST = 60  # tokens of a caption

Captioner = Callable[[Image.Image], str]


def load_captioner(folder: Path, device: str = "cpu") -> Captioner:
    """A function that describes an image. Only files of the folder are read, and none of its code is run.

    Raises:
        UserError: transformers is not installed, or the folder contains no network that describes images.
    """
    if not (folder / "config.json").is_file():
        raise UserError(
            f"Expected a folder of transformers with a network that describes images, such as BLIP, but {folder} has "
            "no config.json. Pass the folder that contains it."
        )
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            "--captioner requires the package transformers, which is not installed. Run: pip install "
            "'transformers>=4.40,<6'."
        ) from error
    # The class's former name, in versions before 4.45, is no longer in 5.
    auto = getattr(transformers, "AutoModelForImageTextToText", None) or transformers.AutoModelForVision2Seq
    with _explained(folder):
        processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
        network = auto.from_pretrained(folder, local_files_only=True).to(device).eval()

    def describe(image: Image.Image) -> str:
        with torch.inference_mode(), _explained(folder):
            inputs = processor(images=image, return_tensors="pt").to(device)
            tokens = network.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
            text = processor.batch_decode(tokens, skip_special_tokens=True)[0]
        return " ".join(text.split())

    return describe


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Convert what transformers raises for unsuitable files to a `UserError`."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        raise UserError(
            f"{folder} cannot be used as a captioner ({reason(error, named=True)}). Expected a network of transformers "
            "that describes images without a question, such as BLIP or GIT, with its processor."
        ) from error
