"""Who a fictitious person is: what stays the same in every picture of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]

# Far apart, as 64 pixels have to tell hundreds of people apart.
SKINS: list[Colour] = [
    (255, 224, 196),
    (241, 194, 155),
    (224, 172, 120),
    (198, 134, 84),
    (141, 85, 48),
    (90, 56, 37),
]
HAIRS: dict[str, Colour] = {
    "black": (28, 24, 26),
    "brown": (96, 58, 32),
    "blond": (232, 200, 110),
    "red": (190, 70, 28),
    "grey": (150, 150, 155),
    "white": (240, 240, 238),
    "blue": (60, 90, 200),
    "pink": (235, 120, 170),
    "green": (50, 150, 90),
    "purple": (130, 60, 170),
}
BEARD_HAIRS = ["black", "brown", "blond", "red", "grey", "white"]
STYLES = [
    "bald",
    "short",
    "long",
    "bob",
    "curly",
    "mohawk",
    "bun",
    "ponytail",
    "spiky",
    "parted",
]
EYES: list[Colour] = [
    (70, 45, 25),
    (60, 110, 190),
    (60, 140, 80),
    (120, 120, 120),
    (180, 120, 30),
]
FRAMES: list[Colour] = [
    (20, 20, 20),
    (200, 30, 30),
    (30, 70, 200),
    (220, 180, 40),
    (240, 240, 240),
    (40, 140, 60),
]
GLASSES = ["none", "none", "round", "square", "dark"]
BEARDS = ["none", "none", "full", "goatee", "moustache", "stubble"]
ROSY, PALE = (200, 60, 80), (150, 90, 80)  # lips


@dataclass(frozen=True)
class Face:
    """Lengths are in half heads, about half picture sides; x to the right, y down."""

    is_woman: bool
    skin: Colour
    hair_name: str
    hair: Colour
    style: str
    hair_volume: float
    fringe: float
    width: float
    height: float
    jaw: float  # 1: as wide as the temples
    eye: Colour
    eye_size: float
    eye_gap: float
    eye_height: float
    eye_lift: float  # above the root of the nose
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


def draw_identity(role: int, seed: int, index: int) -> Face:
    """The person of this seed. The order of the fields is the order of the draws: keep it."""
    r = np.random.default_rng([role, seed, index])

    def pick(options):
        return options[int(r.integers(len(options)))]

    def near(colour: Colour, spread: float) -> Colour:
        return tuple(int(np.clip(c + r.normal(0, spread), 0, 255)) for c in colour)

    is_woman = bool(r.random() < 0.5)
    hair_name = pick(list(HAIRS))
    hair = near(HAIRS[hair_name], 10)
    return Face(
        is_woman=is_woman,
        skin=near(pick(SKINS), 8),
        hair_name=hair_name,
        hair=hair,
        style=pick([style for style in STYLES if not (is_woman and style == "bald")]),
        hair_volume=r.uniform(0.06, 0.22),
        fringe=r.uniform(0.0, 0.30),
        width=r.uniform(0.40, 0.62),
        height=r.uniform(0.58, 0.80),
        jaw=r.uniform(0.45, 1.0),
        eye=pick(EYES),
        eye_size=r.uniform(0.07, 0.15),
        eye_gap=r.uniform(0.17, 0.29),
        eye_height=r.uniform(-0.20, 0.02),
        eye_lift=r.uniform(-0.05, 0.05),
        lids=r.uniform(0.5, 1.0),
        brow=shade(hair, 0.7),
        brow_thickness=r.uniform(0.02, 0.09),
        brow_angle=r.uniform(-0.08, 0.08),
        nose_length=r.uniform(0.12, 0.34),
        nose_width=r.uniform(0.05, 0.16),
        mouth_width=r.uniform(0.12, 0.30),
        mouth_height=r.uniform(0.34, 0.48),
        lip_thickness=r.uniform(0.02, 0.08),
        lips=near(ROSY if r.random() < 0.5 else PALE, 20),
        ears=r.uniform(0.06, 0.18),
        glasses=pick(GLASSES),
        frame=pick(FRAMES),
        beard="none" if is_woman else pick(BEARDS),
        beard_colour=near(HAIRS[pick(BEARD_HAIRS)], 10),
        mole=(r.uniform(-0.35, 0.35), r.uniform(0.0, 0.4)) if r.random() < 0.3 else None,
        freckles=int(r.integers(8, 16)) if r.random() < 0.2 else 0,
        cheeks=r.uniform(0.2, 0.6) if r.random() < 0.3 else 0.0,
        scar=r.uniform(-0.3, 0.3) if r.random() < 0.15 else None,
        lines=int(r.integers(1, 4)) if r.random() < 0.25 else 0,
        neck=r.uniform(0.22, 0.36),
    )


def shade(colour: Colour, factor: float) -> Colour:
    return tuple(int(min(255, c * factor)) for c in colour)
