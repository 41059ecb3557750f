"""People who do not exist: what stays the same of one, and pictures of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

SIDE = 64  # of a picture
SCALE = 2  # drawn larger, then reduced: smooth edges
SKINS = [(255, 224, 196), (241, 194, 155), (224, 172, 120), (198, 134, 84), (141, 85, 48), (90, 56, 37)]
HAIRS = {
    "black": (28, 24, 26), "brown": (96, 58, 32), "blond": (232, 200, 110), "red": (190, 70, 28),
    "grey": (150, 150, 155), "white": (240, 240, 238), "blue": (60, 90, 200), "pink": (235, 120, 170),
    "green": (50, 150, 90), "purple": (130, 60, 170),
}  # fmt: skip
STYLES = ["bald", "short", "long", "bob", "curly", "mohawk", "bun", "ponytail", "spiky", "parted"]
EYES = [(70, 45, 25), (60, 110, 190), (60, 140, 80), (120, 120, 120), (180, 120, 30)]
FRAMES = [(20, 20, 20), (200, 30, 30), (30, 70, 200), (220, 180, 40), (240, 240, 240), (40, 140, 60)]
BEARDS = ["none", "none", "full", "goatee", "moustache", "stubble"]

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Face:
    """What stays the same in every picture of a person. Lengths are in half picture sides."""

    is_woman: bool
    skin: Colour
    hair_name: str
    hair: Colour
    style: str
    hair_volume: float
    fringe: float
    width: float
    height: float
    jaw: float
    eye: Colour
    eye_size: float
    eye_gap: float
    eye_height: float
    eye_slant: float
    lids: float
    brow: Colour
    brow_thickness: float
    brow_angle: float
    nose_length: float
    nose_width: float
    mouth_width: float
    mouth_height: float
    lip_thickness: float
    lips: Colour
    ears: float
    glasses: str
    frame: Colour
    beard: str
    beard_colour: Colour
    mole: tuple[float, float] | None
    freckles: int
    cheeks: float
    scar: float | None
    lines: int
    neck: float


def draw_identity(*seed: int) -> Face:
    """The person of this seed."""
    r = np.random.default_rng(seed)

    def pick(options):
        return options[int(r.integers(len(options)))]

    def near(colour: Colour, spread: float) -> Colour:
        return tuple(int(np.clip(c + r.normal(0, spread), 0, 255)) for c in colour)

    is_woman = bool(r.random() < 0.5)
    hair_name = pick(list(HAIRS))
    hair = near(HAIRS[hair_name], 10)
    styles = [s for s in STYLES if not (is_woman and s == "bald")]
    return Face(
        is_woman=is_woman,
        skin=near(pick(SKINS), 8),
        hair_name=hair_name,
        hair=hair,
        style=pick(styles),
        hair_volume=r.uniform(0.06, 0.22),
        fringe=r.uniform(0.0, 0.30),
        width=r.uniform(0.40, 0.62),
        height=r.uniform(0.58, 0.80),
        jaw=r.uniform(0.45, 1.0),
        eye=pick(EYES),
        eye_size=r.uniform(0.07, 0.15),
        eye_gap=r.uniform(0.17, 0.29),
        eye_height=r.uniform(-0.20, 0.02),
        eye_slant=r.uniform(-0.05, 0.05),
        lids=r.uniform(0.5, 1.0),
        brow=tuple(int(c * 0.7) for c in hair),
        brow_thickness=r.uniform(0.02, 0.09),
        brow_angle=r.uniform(-0.08, 0.08),
        nose_length=r.uniform(0.12, 0.34),
        nose_width=r.uniform(0.05, 0.16),
        mouth_width=r.uniform(0.12, 0.30),
        mouth_height=r.uniform(0.34, 0.48),
        lip_thickness=r.uniform(0.02, 0.08),
        lips=near((200, 60, 80) if r.random() < 0.5 else (150, 90, 80), 20),
        ears=r.uniform(0.06, 0.18),
        glasses=pick(["none", "none", "round", "square", "dark"]),
        frame=pick(FRAMES),
        beard="none" if is_woman else pick(BEARDS),
        beard_colour=near(HAIRS[pick(["black", "brown", "blond", "red", "grey", "white"])], 10),
        mole=(r.uniform(-0.35, 0.35), r.uniform(0.0, 0.4)) if r.random() < 0.3 else None,
        freckles=int(r.integers(8, 16)) if r.random() < 0.2 else 0,
        cheeks=r.uniform(0.2, 0.6) if r.random() < 0.3 else 0.0,
        scar=r.uniform(-0.3, 0.3) if r.random() < 0.15 else None,
        lines=int(r.integers(1, 4)) if r.random() < 0.25 else 0,
        neck=r.uniform(0.22, 0.36),
    )


class Pose:
    """Where the head stands in one picture: position, size, rotation, and which way it looks."""

    def __init__(self, r: np.random.Generator):
        half = SIDE * SCALE / 2
        self.size = half * r.uniform(0.84, 1.04)
        self.x, self.y = half * (1 + r.uniform(-0.1, 0.1)), half * (1 + r.uniform(-0.06, 0.14))
        self.angle = r.uniform(-12, 12) * pi / 180
        self.yaw, self.pitch = r.uniform(-0.09, 0.09), r.uniform(-0.06, 0.06)

    def at(self, x: float, y: float, depth: float = 0.0) -> tuple[float, float]:
        """A point of the head in the picture; depth: how far it shifts when the head turns."""
        x, y = x + self.yaw * depth, y + self.pitch * depth
        return (
            self.x + self.size * (x * cos(self.angle) - y * sin(self.angle)),
            self.y + self.size * (x * sin(self.angle) + y * cos(self.angle)),
        )

    def oval(self, x, y, rx, ry, depth=0.0, jaw=1.0, points=28) -> list[tuple[float, float]]:
        """An ellipse, narrower towards the chin by `jaw`."""
        outline = []
        for k in range(points):
            a = 2 * pi * k / points
            narrow = 1 - (1 - jaw) * max(0.0, sin(a)) ** 2 * 0.6
            outline.append(self.at(x + rx * cos(a) * narrow, y + ry * sin(a), depth))
        return outline


def draw_picture(face: Face, *seed: int) -> Image.Image:
    """One picture of a person: everything that is not theirs is drawn from this seed."""
    r = np.random.default_rng(seed)
    side = SIDE * SCALE
    image = Image.new("RGB", (side, side), _any_colour(r))
    draw = ImageDraw.Draw(image)
    _background(draw, r, side)
    pose = Pose(r)
    _hair_behind(draw, face, pose)
    _body(draw, face, pose, r)
    for sign in (-1, 1):
        ear = pose.oval(sign * face.width, 0.02, face.ears * 0.7, face.ears, depth=-0.5)
        draw.polygon(ear, fill=_shade(face.skin, 0.9))
    draw.polygon(pose.oval(0, 0, face.width, face.height, jaw=face.jaw), fill=face.skin)
    _skin_marks(draw, face, pose)
    _beard(draw, face, pose)
    _features(draw, face, pose, r)
    _hair_before(draw, face, pose)
    _glasses(draw, face, pose)
    _wearing(draw, face, pose, r)
    return _photograph(image, r)


def _any_colour(r: np.random.Generator) -> Colour:
    return tuple(int(c) for c in r.integers(20, 236, 3))


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(int(min(255, c * factor)) for c in colour)


def _background(draw: ImageDraw.ImageDraw, r: np.random.Generator, side: int) -> None:
    for _ in range(int(r.integers(0, 5))):
        x, y, w, h = r.uniform(-0.2, 1, 2).tolist() + r.uniform(0.1, 0.7, 2).tolist()
        box = [x * side, y * side, (x + w) * side, (y + h) * side]
        (draw.rectangle if r.random() < 0.5 else draw.ellipse)(box, fill=_any_colour(r))


def _body(draw, face: Face, pose: Pose, r) -> None:
    clothes = _any_colour(r)
    neck = [pose.at(-face.neck, 0.3), pose.at(face.neck, 0.3), pose.at(face.neck, 1.1), pose.at(-face.neck, 1.1)]
    draw.polygon(neck, fill=_shade(face.skin, 0.82))
    shoulders = [pose.at(-1.1, 1.6), pose.at(-0.9, 0.98), pose.at(-0.3, 0.84), pose.at(0, 1.0),
                 pose.at(0.3, 0.84), pose.at(0.9, 0.98), pose.at(1.1, 1.6)]  # fmt: skip
    draw.polygon(shoulders, fill=clothes)


def _hair_behind(draw, face: Face, pose: Pose) -> None:
    top, wide = face.height + face.hair_volume, face.width + face.hair_volume
    if face.style == "long":
        draw.polygon([pose.at(-wide, -0.3), pose.at(wide, -0.3), pose.at(wide * 1.1, 1.05), pose.at(-wide * 1.1, 1.05)], fill=face.hair)
    if face.style == "bob":
        draw.polygon([pose.at(-wide, -0.3), pose.at(wide, -0.3), pose.at(wide * 1.15, 0.5), pose.at(-wide * 1.15, 0.5)], fill=face.hair)
    if face.style == "ponytail":
        draw.polygon(pose.oval(wide, 0.1, 0.2, 0.6, depth=-1), fill=face.hair)
    if face.style == "bun":
        draw.polygon(pose.oval(0, -top - 0.06, 0.24, 0.2, depth=-1), fill=face.hair)
    if face.style == "curly":
        for k in range(14):
            a = pi + pi * k / 13
            draw.polygon(pose.oval(wide * cos(a), 0.12 + top * sin(a), 0.2, 0.2), fill=face.hair)
    if face.style != "bald":
        draw.polygon(pose.oval(0, -0.08, wide, top), fill=face.hair)


def _hair_before(draw, face: Face, pose: Pose) -> None:
    if face.style == "bald":
        return
    line = -face.height + 0.16 + face.fringe
    top, wide = face.height + face.hair_volume, face.width + face.hair_volume * 0.5
    if face.style == "mohawk":
        draw.polygon([pose.at(-0.12, line), pose.at(-0.16, -top - 0.2), pose.at(0.16, -top - 0.2), pose.at(0.12, line)], fill=face.hair)
        return
    if face.style == "spiky":
        for k in range(7):
            x = -wide + 2 * wide * k / 6
            draw.polygon([pose.at(x - 0.14, -0.5), pose.at(x, -top - 0.16), pose.at(x + 0.14, -0.5)], fill=face.hair)
    split = -0.5 * wide if face.style == "parted" else 0.0
    cap = [pose.at(wide * cos(pi + pi * k / 12), -0.08 + top * sin(pi + pi * k / 12)) for k in range(13)]
    inner = [pose.at(wide * 0.85, -0.1), pose.at(0.6 * face.width, line), pose.at(split, line - 0.12), pose.at(-0.6 * face.width, line), pose.at(-wide * 0.85, -0.1)]
    draw.polygon(cap + inner, fill=face.hair)


def _skin_marks(draw, face: Face, pose: Pose) -> None:
    if face.cheeks:
        tint = tuple(int(c * (1 - face.cheeks * 0.4) + t * face.cheeks * 0.4) for c, t in zip(face.skin, (255, 60, 80)))
        for sign in (-1, 1):
            draw.polygon(pose.oval(sign * 0.28, 0.2, 0.11, 0.09, depth=0.8), fill=tint)
    for k in range(face.freckles):
        x, y = 0.3 * sin(k * 2.4), 0.12 + 0.12 * cos(k * 1.7)
        draw.polygon(pose.oval(x, y, 0.018, 0.018, depth=0.9, points=6), fill=_shade(face.skin, 0.65))
    for k in range(face.lines):
        y = -face.height * 0.55 + 0.07 * k
        draw.line([pose.at(-0.22, y, 0.8), pose.at(0.22, y, 0.8)], fill=_shade(face.skin, 0.75), width=1)
    if face.mole:
        draw.polygon(pose.oval(*face.mole, 0.045, 0.045, depth=0.9, points=8), fill=(60, 35, 25))
    if face.scar is not None:
        draw.line([pose.at(face.scar, 0.02, 0.9), pose.at(face.scar + 0.14, 0.34, 0.9)], fill=(190, 60, 60), width=2)


def _beard(draw, face: Face, pose: Pose) -> None:
    y = face.mouth_height
    if face.beard in ("full", "stubble"):
        colour = face.beard_colour if face.beard == "full" else _shade(face.skin, 0.72)
        low = [pose.at(face.width * cos(a) * (1 - (1 - face.jaw) * 0.5), face.height * (sin(a) * 1.04), 0.2) for a in np.linspace(0.1, pi - 0.1, 14)]
        draw.polygon([*low, pose.at(-0.22, 0.24, 0.8), pose.at(0.22, 0.24, 0.8)], fill=colour)
    if face.beard == "goatee":
        draw.polygon(pose.oval(0, y + 0.14, 0.17, 0.16, depth=0.8), fill=face.beard_colour)
    if face.beard in ("full", "moustache", "goatee"):
        draw.polygon(pose.oval(0, y - 0.08, face.mouth_width + 0.03, 0.05, depth=1), fill=face.beard_colour)


def _features(draw, face: Face, pose: Pose, r) -> None:
    gaze_x, gaze_y, blink = r.uniform(-0.03, 0.03), r.uniform(-0.015, 0.015), r.uniform(0.75, 1.1)
    for sign in (-1, 1):
        x, y = sign * face.eye_gap, face.eye_height + sign * 0.0 - face.eye_slant
        height = face.eye_size * face.lids * 0.75 * blink
        draw.polygon(pose.oval(x, y, face.eye_size, height, depth=1), fill=(248, 248, 244))
        pupil = min(height, face.eye_size * 0.62)
        draw.polygon(pose.oval(x + gaze_x, y + gaze_y, pupil, pupil, depth=1, points=12), fill=face.eye)
        draw.polygon(pose.oval(x + gaze_x, y + gaze_y, pupil * 0.45, pupil * 0.45, depth=1, points=8), fill=(10, 10, 10))
        brow = y - face.eye_size - 0.08 - r.uniform(0, 0.03)
        inner, outer = sign * (face.eye_gap - 0.11), sign * (face.eye_gap + 0.13)
        t = face.brow_thickness / 2
        draw.polygon([pose.at(inner, brow + face.brow_angle - t, 1), pose.at(outer, brow - face.brow_angle - t, 1),
                      pose.at(outer, brow - face.brow_angle + t, 1), pose.at(inner, brow + face.brow_angle + t, 1)], fill=face.brow)  # fmt: skip
    tip = face.eye_height + 0.06 + face.nose_length
    draw.polygon([pose.at(0, face.eye_height, 1.1), pose.at(face.nose_width, tip, 1.6), pose.at(-face.nose_width, tip, 1.6)], fill=_shade(face.skin, 0.84))
    smile, open_by = r.uniform(-0.04, 0.08), max(0.0, r.uniform(-0.08, 0.06))
    w, y, t = face.mouth_width, face.mouth_height, face.lip_thickness
    lips = [pose.at(-w, y - smile, 1), pose.at(0, y - t, 1), pose.at(w, y - smile, 1), pose.at(0, y + t + open_by, 1)]
    draw.polygon(lips, fill=face.lips)
    if open_by > 0.02:
        draw.polygon(pose.oval(0, y + open_by / 2, w * 0.55, open_by * 0.6, depth=1, points=10), fill=(80, 20, 25))


def _glasses(draw, face: Face, pose: Pose) -> None:
    if face.glasses == "none":
        return
    reach = max(face.eye_size * 1.5, 0.15)
    y = face.eye_height - face.eye_slant
    for sign in (-1, 1):
        if face.glasses == "square":
            outline = [pose.at(sign * face.eye_gap + dx * reach, y + dy * reach * 0.8, 1.1) for dx, dy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        else:
            outline = pose.oval(sign * face.eye_gap, y, reach, reach, depth=1.1, points=18)
        if face.glasses == "dark":
            draw.polygon(outline, fill=_shade(face.frame, 0.5))
        draw.line([*outline, outline[0]], fill=face.frame, width=3)
    draw.line([pose.at(-face.eye_gap + reach, y, 1.1), pose.at(face.eye_gap - reach, y, 1.1)], fill=face.frame, width=3)


def _wearing(draw, face: Face, pose: Pose, r) -> None:
    """Hats and earrings change from picture to picture: they must not give anyone away."""
    if r.random() < 0.12:
        colour = _any_colour(r)
        brim = -face.height * 0.62
        draw.polygon([pose.at(-face.width - 0.12, brim), pose.at(face.width + 0.12, brim), pose.at(face.width, brim - 0.34), pose.at(-face.width, brim - 0.34)], fill=colour)
    if r.random() < 0.15:
        colour = _any_colour(r)
        for sign in (-1, 1):
            draw.polygon(pose.oval(sign * face.width, 0.02 + face.ears * 1.2, 0.05, 0.06, points=8), fill=colour)


def _photograph(image: Image.Image, r: np.random.Generator) -> Image.Image:
    """Light, colour cast and noise, at the final size."""
    pixels = np.asarray(image.reduce(SCALE), dtype=np.float32)
    across = np.linspace(-1, 1, SIDE, dtype=np.float32)
    light = 1 + r.uniform(-0.18, 0.18) * across[None, :, None] + r.uniform(-0.12, 0.12) * across[:, None, None]
    pixels = pixels * light * r.uniform(0.82, 1.15) * r.uniform(0.93, 1.07, 3).astype(np.float32)
    pixels += r.standard_normal(pixels.shape, dtype=np.float32) * r.uniform(1, 5)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
