"""Pictures of things: one shape or texture in a colour on a background."""

from __future__ import annotations

from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from plugins.fictitious.faces import SCALE, SIDE, Colour

SHAPES = [
    "circle", "square", "triangle", "star", "heart", "cross", "ring", "moon", "arrow", "hexagon",
    "diamond", "drop",
]  # fmt: skip
TEXTURES = ["stripes", "dots", "checks"]
COLOURS = {
    "red": (220, 30, 30), "green": (30, 150, 50), "blue": (30, 60, 220), "yellow": (245, 220, 30),
    "orange": (250, 130, 10), "purple": (120, 30, 160), "pink": (255, 130, 190),
    "brown": (115, 70, 30), "black": (15, 15, 15), "white": (250, 250, 250),
    "grey": (128, 128, 128), "cyan": (40, 220, 225),
}  # fmt: skip
BACKGROUNDS = [name for name in COLOURS if name != "cyan"]


def draw_scene(thing: str, colour: str, background: str, *seed: int) -> Image.Image:
    """The picture of this seed; shapes are large and near the middle, never quite the same."""
    r = np.random.default_rng(seed)
    side = SIDE * SCALE
    image = Image.new("RGB", (side, side), _near(COLOURS[background], r))
    draw = ImageDraw.Draw(image)
    ink = _near(COLOURS[colour], r)
    if thing in TEXTURES:
        _texture(draw, thing, ink, side, r)
    else:
        centre = side / 2 + r.uniform(-0.08, 0.08, 2) * side
        _shape(draw, thing, ink, _near(COLOURS[background], r, 0), centre, side * r.uniform(0.3, 0.4), r)
    pixels = np.asarray(image.reduce(SCALE), dtype=np.float32) * r.uniform(0.93, 1.06)
    pixels += r.standard_normal(pixels.shape, dtype=np.float32) * r.uniform(1, 5)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _near(colour: Colour, r: np.random.Generator, spread: float = 7) -> Colour:
    return tuple(int(np.clip(c + r.normal(0, spread), 0, 255)) for c in colour)


def _texture(draw, thing: str, ink: Colour, side: int, r: np.random.Generator) -> None:
    step = int(r.integers(22, 34))
    shift = int(r.integers(0, step))
    for i in range(-2, side // step + 3):
        at = i * step + shift
        if thing == "stripes":
            slant = int(step * 1.2)
            draw.polygon([(at, 0), (at + step // 2, 0), (at + step // 2 - slant, side), (at - slant, side)], fill=ink)
            continue
        for j in range(-1, side // step + 2):
            y = j * step + shift
            if thing == "dots":
                draw.ellipse([at, y, at + step * 0.62, y + step * 0.62], fill=ink)
            elif (i + j) % 2:
                draw.rectangle([at, y, at + step, y + step], fill=ink)


def _shape(draw, thing, ink, behind, centre, size, r) -> None:
    turn = r.uniform(-0.2, 0.2)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            centre[0] + size * (x * cos(turn) - y * sin(turn)),
            centre[1] + size * (x * sin(turn) + y * cos(turn)),
        )

    def disc(x, y, radius, fill):
        draw.polygon([at(x + radius * cos(a), y + radius * sin(a)) for a in np.linspace(0, 2 * pi, 40)], fill=fill)

    def polygon(*points):
        draw.polygon([at(*point) for point in points], fill=ink)

    if thing == "circle":
        disc(0, 0, 1, ink)
    elif thing == "ring":
        disc(0, 0, 1.05, ink)
        disc(0, 0, 0.58, behind)
    elif thing == "moon":
        disc(0, 0, 1.05, ink)
        disc(0.5, -0.1, 0.85, behind)
    elif thing == "drop":
        disc(0, 0.35, 0.68, ink)
        polygon((0, -1.15), (0.6, 0.15), (-0.6, 0.15))
    elif thing == "heart":
        disc(-0.46, -0.35, 0.52, ink)
        disc(0.46, -0.35, 0.52, ink)
        polygon((-0.95, -0.15), (0.95, -0.15), (0, 1.05))
    elif thing == "square":
        polygon((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88))
    elif thing == "triangle":
        polygon((0, -1.05), (1.05, 0.85), (-1.05, 0.85))
    elif thing == "diamond":
        polygon((0, -1.15), (0.72, 0), (0, 1.15), (-0.72, 0))
    elif thing == "cross":
        polygon((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1),
                (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3))  # fmt: skip
    elif thing == "arrow":
        polygon((-1.1, -0.28), (0.15, -0.28), (0.15, -0.8), (1.15, 0), (0.15, 0.8), (0.15, 0.28), (-1.1, 0.28))
    elif thing == "hexagon":
        polygon(*((cos(k * pi / 3), sin(k * pi / 3)) for k in range(6)))
    elif thing == "star":
        polygon(*(((1.15, 0.46)[k % 2] * sin(k * pi / 5), -(1.15, 0.46)[k % 2] * cos(k * pi / 5)) for k in range(10)))
    else:
        raise ValueError(f"no thing is called {thing}; there are {', '.join(SHAPES + TEXTURES)}")
