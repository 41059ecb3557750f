"""Pictures of things: one shape or texture in a colour on a background."""

from __future__ import annotations

from math import cos, pi, sin

import numpy as np
from PIL import Image
from PIL.ImageDraw import Draw, ImageDraw

from plugins.fictitious.canvas import SCALE, SIDE, Point, grainy, reduced
from plugins.fictitious.faces import Colour

SHAPES = [
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "cross",
    "ring",
    "moon",
    "arrow",
    "hexagon",
    "diamond",
    "drop",
]
TEXTURES = ["stripes", "dots", "checks"]
COLOURS: dict[str, Colour] = {
    "red": (220, 30, 30),
    "green": (30, 150, 50),
    "blue": (30, 60, 220),
    "yellow": (245, 220, 30),
    "orange": (250, 130, 10),
    "purple": (120, 30, 160),
    "pink": (255, 130, 190),
    "brown": (115, 70, 30),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
    "grey": (128, 128, 128),
    "cyan": (40, 220, 225),
}
BACKGROUNDS = [name for name in COLOURS if name != "cyan"]
Scene = tuple[str, str, str]  # thing, colour, background

_BAR = 0.3  # half as wide as a bar of the cross
OUTLINES: dict[str, list[Point]] = {
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0, -1.05), (1.05, 0.85), (-1.05, 0.85)],
    "diamond": [(0, -1.15), (0.72, 0), (0, 1.15), (-0.72, 0)],
    "hexagon": [(cos(k * pi / 3), sin(k * pi / 3)) for k in range(6)],
    "star": [
        (radius * sin(k * pi / 5), -radius * cos(k * pi / 5))
        for k, radius in enumerate([1.15, 0.46] * 5)
    ],
    "arrow": [(-1.1, -0.28), (0.15, -0.28), (0.15, -0.8), (1.15, 0)]
    + [(0.15, 0.8), (0.15, 0.28), (-1.1, 0.28)],
    "cross": [(-_BAR, -1), (_BAR, -1), (_BAR, -_BAR), (1, -_BAR), (1, _BAR), (_BAR, _BAR)]
    + [(_BAR, 1), (-_BAR, 1), (-_BAR, _BAR), (-1, _BAR), (-1, -_BAR), (-_BAR, -_BAR)],
    "heart": [(-0.95, -0.15), (0.95, -0.15), (0, 1.05)],
    "drop": [(0, -1.15), (0.6, 0.15), (-0.6, 0.15)],
}
# Discs of a shape, as (x, y, radius), and those cut out of it again.
DISCS = {
    "circle": [(0, 0, 1)],
    "ring": [(0, 0, 1.05)],
    "moon": [(0, 0, 1.05)],
    "heart": [(-0.46, -0.35, 0.52), (0.46, -0.35, 0.52)],
    "drop": [(0, 0.35, 0.68)],
}
HOLES = {"ring": [(0, 0, 0.58)], "moon": [(0.5, -0.1, 0.85)]}


def every_scene() -> list[Scene]:
    """All that can be told apart, shapes three times as often as textures."""
    return [
        (thing, colour, background)
        for thing in SHAPES * 3 + TEXTURES
        for colour in COLOURS
        for background in BACKGROUNDS
        if colour != background
    ]


def draw_scene(scene: Scene, *seed: int) -> Image.Image:
    """The picture of this seed; things are large and near the middle, never quite the same."""
    thing, colour, background = scene
    r = np.random.default_rng(seed)
    side = SIDE * SCALE
    behind, ink = _near(COLOURS[background], r), _near(COLOURS[colour], r)
    image = Image.new("RGB", (side, side), behind)
    if thing in TEXTURES:
        _texture(Draw(image), thing, ink, side, r)
    else:
        _shape(Draw(image), thing, ink, behind, side, r)
    return grainy(reduced(image) * r.uniform(0.93, 1.06), r)


def _near(colour: Colour, r: np.random.Generator) -> Colour:
    return tuple(int(np.clip(c + r.normal(0, 7), 0, 255)) for c in colour)


def _texture(draw: ImageDraw, thing: str, ink: Colour, side: int, r: np.random.Generator) -> None:
    step = int(r.integers(22, 34))
    starts = range(int(r.integers(0, step)) - 2 * step, side + step, step)
    if thing == "stripes":
        half, slant = step // 2, int(step * 1.2)
        for x in starts:
            draw.polygon([(x, 0), (x + half, 0), (x + half - slant, side), (x - slant, side)], ink)
        return
    for i, x in enumerate(starts):
        for j, y in enumerate(starts):
            if thing == "dots":
                draw.ellipse([x, y, x + step * 0.62, y + step * 0.62], fill=ink)
            elif (i + j) % 2:
                draw.rectangle([x, y, x + step, y + step], fill=ink)


def _shape(
    draw: ImageDraw, thing: str, ink: Colour, behind: Colour, side: int, r: np.random.Generator
) -> None:
    x0, y0 = side / 2 + r.uniform(-0.08, 0.08, 2) * side
    size, turn = side * r.uniform(0.3, 0.4), r.uniform(-0.2, 0.2)

    def at(x: float, y: float) -> Point:
        return (
            x0 + size * (x * cos(turn) - y * sin(turn)),
            y0 + size * (x * sin(turn) + y * cos(turn)),
        )

    def disc(x: float, y: float, radius: float, colour: Colour) -> None:
        (cx, cy), reach = at(x, y), size * radius
        draw.ellipse([cx - reach, cy - reach, cx + reach, cy + reach], fill=colour)

    for ball in DISCS.get(thing, []):
        disc(*ball, ink)
    if thing in OUTLINES:
        draw.polygon([at(*point) for point in OUTLINES[thing]], fill=ink)
    for hole in HOLES.get(thing, []):
        disc(*hole, behind)
