"""Joins the images that docs/editor.js recorded to the README's editor.webp: `./vc python docs/editor.py FOLDER`."""

import sys
from pathlib import Path

from PIL import Image

SIZE = (720, 615)

files = sorted(Path(sys.argv[1]).glob("editor_*.png"))
images = [Image.open(file).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS) for file in files]
milliseconds = [int(file.stem.split("_")[2]) for file in files]
out = Path(__file__).with_name("editor.webp")
images[0].save(
    out, save_all=True, append_images=images[1:], duration=milliseconds, loop=0, quality=50, minimize_size=True
)  # fmt: skip
