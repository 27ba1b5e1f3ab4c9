"""Draws the pack's icon and banner for ComfyUI's registry: `./vc python docs/art.py` writes both next to this file.

One scene, a boat under sail, is a list of shapes. The conditions are ways of drawing them: in their colours, as a
sketch, by depth, as a mask, and as motion.
"""

from collections.abc import Callable, Iterable
from math import atan2, cos, pi, sin
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

ICON, BANNER = (400, 400), (1260, 540)
SCALE = 3  # everything is drawn so many times as large, and brought down at the end, which smooths its edges

Point = tuple[float, float]
Colour = tuple[int, int, int]

NIGHT, DUSK, PAPER, INK = (20, 22, 52), (64, 38, 104), (248, 245, 236), (44, 44, 72)
WHITE, BLACK, GLOW, QUIET = (255, 255, 255), (0, 0, 0), (255, 196, 92), (188, 190, 222)


class Shape(NamedTuple):
    """A filled outline in the unit square, y downwards.

    Attributes:
        near: 0 far away to 1 at the camera.
        moves: whether it is the boat's.
        lower: its colour at the bottom of the picture, if the colour changes towards it.
    """

    outline: list[Point]
    colour: Colour
    near: float
    moves: bool = False
    lower: Colour | None = None


def ground(height: Callable[[float], float]) -> list[Point]:
    """All below a line; its other sides lie beyond the picture's."""
    return [(x / 60, height(x / 60)) for x in range(-3, 64)] + [(1.05, 1.05), (-0.05, 1.05)]


def disc(x: float, y: float, radius: float) -> list[Point]:
    return [(x + radius * cos(a * pi / 40), y + radius * sin(a * pi / 40)) for a in range(80)]


def scene(time: float) -> list[Shape]:
    """What is to be seen at a time from 0 to 1, from the back to the front."""
    x, y = 0.27 + 0.42 * time, 0.70 + 0.015 * sin(4 * pi * time)

    def boat(*outline: Point) -> list[Point]:
        return [(x + right, y + down) for right, down in outline]

    return [
        Shape(ground(lambda x: 0.0), (52, 58, 140), 0.1, lower=(255, 152, 96)),
        Shape(disc(0.70, 0.36, 0.14), (255, 226, 150), 0.1),
        Shape(ground(lambda x: 0.50 - 0.10 * sin(4.2 * x + 0.6) - 0.03 * sin(13 * x)), (112, 78, 150), 0.26),
        Shape(ground(lambda x: 0.585), (66, 122, 190), 0.46, lower=(20, 40, 104)),
        Shape(boat((0.015, -0.40), (0.015, -0.055), (0.20, -0.055)), (255, 250, 238), 0.78, moves=True),
        Shape(boat((-0.015, -0.34), (-0.015, -0.055), (-0.14, -0.055)), (255, 214, 190), 0.74, moves=True),
        Shape(boat((-0.19, -0.03), (0.23, -0.03), (0.14, 0.10), (-0.13, 0.10)), (222, 72, 72), 0.82, moves=True),
        Shape(ground(lambda x: 0.775 + 0.018 * sin(16 * x - 3 * time)), (34, 66, 142), 0.9, lower=(14, 26, 74)),
    ]


# --- The ways of drawing it -----------------------------------------------------------------------------------------


def blend(first: Colour, second: Colour, fraction: float) -> Colour:
    return tuple(round(a + (b - a) * fraction) for a, b in zip(first, second, strict=True))


def gradient(size: tuple[int, int], start: Colour, end: Colour, across: float = 0.0) -> Image.Image:
    """From the top to the bottom, or to the right as far as `across` says, 0 to 1."""
    right, down = np.linspace(0, 1, size[0])[None, :, None], np.linspace(0, 1, size[1])[:, None, None]
    fraction = across * right + (1 - across) * down
    return Image.fromarray((np.array(start) + fraction * (np.array(end) - np.array(start))).round().astype(np.uint8))


def filled(image: Image.Image, shape: Shape, colour: Colour, lower: Colour | None = None) -> None:
    """Draws a shape in one colour, or in one that changes from the top of the picture to its bottom."""
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).polygon([(x * image.width, y * image.height) for x, y in shape.outline], fill=255)
    image.paste(gradient(image.size, colour, lower or colour), mask=mask)


def in_colours(size: tuple[int, int], time: float) -> Image.Image:
    image = Image.new("RGB", size)
    for shape in scene(time):
        filled(image, shape, shape.colour, shape.lower)
    return image


def as_sketch(size: tuple[int, int], time: float) -> Image.Image:
    """Outlines, each hiding what lies behind it."""
    image = Image.new("RGB", size, PAPER)
    for shape in scene(time)[1:]:
        filled(image, shape, PAPER)
        points = [(x * size[0], y * size[1]) for x, y in (*shape.outline, shape.outline[0])]
        ImageDraw.Draw(image).line(points, INK, max(2, size[0] // 56), joint="curve")
    return image


def by_depth(size: tuple[int, int], time: float) -> Image.Image:
    image = Image.new("RGB", size)
    for shape in scene(time):
        grey, rise = round(255 * shape.near), 50 if shape.lower and shape.near > 0.4 else 0
        filled(image, shape, (max(0, grey - 2 * rise),) * 3, (min(255, grey + rise),) * 3)
    return image


def as_mask(size: tuple[int, int], time: float) -> Image.Image:
    image = Image.new("RGB", size)
    for shape in scene(time):
        filled(image, shape, WHITE if shape.moves else BLACK)
    return image


def as_motion(size: tuple[int, int], time: float) -> Image.Image:
    """An arrow for every block; the boat's are long, and the boat is shown in the colour of their direction."""
    image = Image.new("RGB", size, (30, 28, 64))
    for shape in scene(time):
        filled(image, shape, (196, 60, 96) if shape.moves else (30, 28, 64))
    moving, draw = as_mask(size, time), ImageDraw.Draw(image)
    for row in range(6):
        for column in range(6):
            x, y = (column + 0.3) / 6 * size[0], (row + 0.5) / 6 * size[1]
            fast = moving.getpixel((round(x), round(y)))[0] > 0
            length = size[0] * (0.13 if fast else 0.04)
            arrow(draw, [(x, y), (x + length, y)], WHITE if fast else (112, 110, 168), size[0] / (45 if fast else 70))
    return image


Drawing = Callable[[tuple[int, int], float], Image.Image]
"""Draws the scene: its size in pixels and the time from 0 to 1 -> the picture."""


# --- What pictures are put together from ----------------------------------------------------------------------------


def arrow(draw: ImageDraw.ImageDraw, points: list[Point], colour: Colour, width: float) -> None:
    """A line through points with a head at its end."""
    (x0, y0), (x1, y1) = points[-2:]
    angle, head = atan2(y1 - y0, x1 - x0), 2.4 * width
    draw.line(points, colour, round(width), joint="curve")
    corners = [(x1 + head * cos(angle + turn), y1 + head * sin(angle + turn)) for turn in (0, 2.3, -2.3)]
    draw.polygon(corners, fill=colour)


def curve(start: Point, end: Point, bend: Point, steps: int = 40) -> list[Point]:
    """A quadratic Bézier curve."""
    shares = [step / steps for step in range(steps + 1)]
    return [
        tuple((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t * t * c for a, b, c in zip(start, bend, end, strict=True))
        for t in shares
    ]


def card(canvas: Image.Image, picture: Image.Image, at: Point, border: float) -> None:
    """Puts a picture down with round corners, a white border and a shadow."""
    x, y, edge = round(at[0]), round(at[1]), round(border)
    size = (picture.width + 2 * edge, picture.height + 2 * edge)

    def rounded(size: tuple[int, int], radius: float) -> Image.Image:
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), radius, fill=255)
        return mask

    shadow = Image.new("L", canvas.size)
    shadow.paste(rounded(size, 3 * edge).point(lambda value: value * 5 // 10), (x + edge, y + 2 * edge))
    canvas.paste(BLACK, mask=shadow.filter(ImageFilter.GaussianBlur(2 * edge)))
    canvas.paste(WHITE, (x, y), rounded(size, 3 * edge))
    canvas.paste(picture, (x + edge, y + edge), rounded(picture.size, 2 * edge))


def text(draw: ImageDraw.ImageDraw, at: Point, lines: Iterable[str], size: int, colour: Colour) -> None:
    font = ImageFont.load_default(size * SCALE)
    draw.multiline_text((at[0] * SCALE, at[1] * SCALE), "\n".join(lines), colour, font, spacing=size * SCALE * 0.42)


# --- The two pictures -----------------------------------------------------------------------------------------------


def icon() -> Image.Image:
    """Frames behind each other. The front one is a sketch on its left, depth in its middle and a video on its right."""
    size = (ICON[0] * SCALE, ICON[1] * SCALE)
    canvas, part = gradient(size, DUSK, NIGHT, across=0.4), 292 * SCALE
    for step, time in enumerate((0.0, 0.2)):
        behind = Image.blend(in_colours((part, part), time), Image.new("RGB", (part, part), NIGHT), 0.3)
        card(canvas, behind, ((20 + 34 * step) * SCALE,) * 2, 6 * SCALE)

    def close(picture: Drawing) -> Image.Image:
        side = round(1.5 * part)
        return picture((side, side), 0.5).crop((side // 6, side // 5, side // 6 + part, side // 5 + part))

    front = close(as_sketch)
    for picture, left in ((by_depth, 0.37), (in_colours, 0.62)):  # each is drawn to the right of a slanting line
        line = [((left + 0.11) * part, 0), ((left - 0.11) * part, part)]
        mask = Image.new("L", front.size)
        ImageDraw.Draw(mask).polygon([*line, (part, part), (part, 0)], fill=255)
        front.paste(close(picture), mask=mask)
        ImageDraw.Draw(front).line(line, WHITE, 5 * SCALE)
    draw = ImageDraw.Draw(front)
    path = curve((0.14 * part, 0.895 * part), (0.82 * part, 0.86 * part), (0.5 * part, 0.97 * part))
    arrow(draw, path, NIGHT, 15 * SCALE)
    arrow(draw, path, GLOW, 9 * SCALE)
    card(canvas, front, (88 * SCALE,) * 2, 6 * SCALE)
    return canvas.resize(ICON, Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    """The name; conditions, and the video that is composed from them."""
    size = (BANNER[0] * SCALE, BANNER[1] * SCALE)
    canvas = gradient(size, DUSK, NIGHT, across=0.7)
    draw = ImageDraw.Draw(canvas)
    text(draw, (60, 40), ["VideoComposer"], 66, WHITE)
    text(draw, (64, 132), ["videos composed from text, style, images, sketches, depth, masks and motion"], 27, QUIET)
    small, large, left, middle = 124 * SCALE, 232 * SCALE, 64 * SCALE, 354 * SCALE
    film = [(x * SCALE, middle - large // 2 - 5 * SCALE) for x in (454, 704, 954)]
    for number, picture in enumerate((as_sketch, by_depth, as_mask, as_motion)):
        column, row = number % 2, number // 2
        at = (left + column * 146 * SCALE, middle + (row * 146 - 139) * SCALE)
        if column:
            start, high, meeting = at[0] + small, at[1] + 66 * SCALE, at[0] + small + 52 * SCALE
            draw.line(curve((start, high), (meeting, middle), (meeting, high)), GLOW, 5 * SCALE, joint="curve")
            arrow(draw, [(meeting - 2 * SCALE, middle), (film[0][0] - 26 * SCALE, middle)], GLOW, 5 * SCALE)
        card(canvas, picture((small, small), 0.5), at, 4 * SCALE)
    for number, at in enumerate(film):
        card(canvas, in_colours((large, large), number / 2), at, 5 * SCALE)
    return canvas.resize(BANNER, Image.Resampling.LANCZOS)


def main() -> None:
    for name, draw in (("icon", icon), ("banner", banner)):
        file = Path(__file__).with_name(f"{name}.png")
        draw().quantize(256, kmeans=1).save(file, optimize=True)  # a palette: a third of the size
        print(f"{file}: {file.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
