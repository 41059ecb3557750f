"""Where a head stands in a picture: its points as the picture's."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from math import cos, pi, sin

import numpy as np

from plugins.fictitious.canvas import SCALE, SIDE, Point


class Pose:
    """Where the head stands in one picture: place, size, rotation, and which way it looks."""

    def __init__(self, r: np.random.Generator):
        half = SIDE * SCALE / 2
        self._size = half * r.uniform(0.84, 1.04)
        self._x, self._y = half * (1 + r.uniform(-0.1, 0.1)), half * (1 + r.uniform(-0.06, 0.14))
        angle = r.uniform(-12, 12) * pi / 180
        self._cos, self._sin = cos(angle), sin(angle)
        self._yaw, self._pitch = r.uniform(-0.09, 0.09), r.uniform(-0.06, 0.06)

    def at(self, x: float, y: float, depth: float = 0.0) -> Point:
        """A point of the head in the picture; depth: how far it shifts when the head turns."""
        x, y = x + self._yaw * depth, y + self._pitch * depth
        return (
            self._x + self._size * (x * self._cos - y * self._sin),
            self._y + self._size * (x * self._sin + y * self._cos),
        )

    def all_at(self, points: Iterable[Point], depth: float = 0.0) -> list[Point]:
        return [self.at(x, y, depth) for x, y in points]

    def oval(self, x, y, rx, ry, depth=0.0, jaw=1.0, points=28) -> list[Point]:
        """An ellipse, narrower towards the chin by `jaw`."""
        # As `at` has it, without a call a point: half of a portrait's time is its ovals'.
        left, top, size, along, aside = self._x, self._y, self._size, self._cos, self._sin
        shift, sink, taper = self._yaw * depth, self._pitch * depth, 1 - jaw
        outline = []
        for across, down, below in _circle(points):
            px = x + rx * across * (1 - taper * below * 0.6) + shift
            py = y + ry * down + sink
            outline.append(
                (left + size * (px * along - py * aside), top + size * (px * aside + py * along))
            )
        return outline


@cache
def _circle(points: int) -> list[tuple[float, float, float]]:
    """Each point across and down, and how far below the middle, squared."""
    angles = [2 * pi * k / points for k in range(points)]
    return [(cos(a), sin(a), max(0.0, sin(a)) ** 2) for a in angles]
