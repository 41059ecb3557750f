"""Pictures of a person: the face is theirs, everything else changes from picture to picture."""

from __future__ import annotations

from math import cos, pi, sin

import numpy as np
from PIL import Image
from PIL.ImageDraw import Draw, ImageDraw

from plugins.fictitious.canvas import SCALE, SIDE, grainy, reduced
from plugins.fictitious.faces import Colour, Face, shade
from plugins.fictitious.poses import Pose

ACROSS = np.linspace(-1, 1, SIDE, dtype=np.float32)  # a picture, from edge to edge


def draw_picture(face: Face, role: int, seed: int, index: int, number: int) -> Image.Image:
    """One picture of a person: all that is not theirs comes of this seed."""
    # The last 1 is needed: numpy pads seeds with zeros, so that [a, b, c, 0] would give the very
    # numbers that [a, b, c] gave the face, and the background would tell the sex.
    r = np.random.default_rng([role, seed, index, number, 1])
    side = SIDE * SCALE
    image = Image.new("RGB", (side, side), _any_colour(r))
    draw = Draw(image)
    _background(draw, r, side)
    pose = Pose(r)
    _hair_behind(draw, face, pose)
    _body(draw, face, pose, r)
    _head(draw, face, pose)
    _skin_marks(draw, face, pose)
    _beard(draw, face, pose)
    _eyes(draw, face, pose, r)
    _nose(draw, face, pose)
    _mouth(draw, face, pose, r)
    _hair_before(draw, face, pose)
    _glasses(draw, face, pose)
    _hat_and_earrings(draw, face, pose, r)
    return photograph(image, r)


def photograph(image: Image.Image, r: np.random.Generator) -> Image.Image:
    """Light, colour cast and noise, at the final size."""
    pixels = reduced(image)
    light = 1 + r.uniform(-0.18, 0.18) * ACROSS[None, :, None]
    light = light + r.uniform(-0.12, 0.12) * ACROSS[:, None, None]
    pixels = pixels * light * r.uniform(0.82, 1.15) * r.uniform(0.93, 1.07, 3).astype(np.float32)
    return grainy(pixels, r)


def _any_colour(r: np.random.Generator) -> Colour:
    return tuple(r.integers(20, 236, 3).tolist())


def _background(draw: ImageDraw, r: np.random.Generator, side: int) -> None:
    for _ in range(int(r.integers(0, 5))):
        x, y, w, h = r.uniform(-0.2, 1, 2).tolist() + r.uniform(0.1, 0.7, 2).tolist()
        box = [x * side, y * side, (x + w) * side, (y + h) * side]
        (draw.rectangle if r.random() < 0.5 else draw.ellipse)(box, fill=_any_colour(r))


def _body(draw: ImageDraw, face: Face, pose: Pose, r: np.random.Generator) -> None:
    clothes = _any_colour(r)
    neck = [(-face.neck, 0.3), (face.neck, 0.3), (face.neck, 1.1), (-face.neck, 1.1)]
    draw.polygon(pose.all_at(neck), fill=shade(face.skin, 0.82))
    left = [(-1.1, 1.6), (-0.9, 0.98), (-0.3, 0.84)]
    right = [(-x, y) for x, y in reversed(left)]
    draw.polygon(pose.all_at([*left, (0, 1.0), *right]), fill=clothes)


def _head(draw: ImageDraw, face: Face, pose: Pose) -> None:
    for sign in (-1, 1):
        ear = pose.oval(sign * face.width, 0.02, face.ears * 0.7, face.ears, depth=-0.5)
        draw.polygon(ear, fill=shade(face.skin, 0.9))
    draw.polygon(pose.oval(0, 0, face.width, face.height, jaw=face.jaw), fill=face.skin)


def _hair_behind(draw: ImageDraw, face: Face, pose: Pose) -> None:
    if face.style == "bald":
        return
    top, wide = face.height + face.hair_volume, face.width + face.hair_volume
    if face.style in ("long", "bob"):
        low, flare = (1.05, 1.1) if face.style == "long" else (0.5, 1.15)
        fall = [(-wide, -0.3), (wide, -0.3), (wide * flare, low), (-wide * flare, low)]
        draw.polygon(pose.all_at(fall), fill=face.hair)
    elif face.style == "ponytail":
        draw.polygon(pose.oval(wide, 0.1, 0.2, 0.6, depth=-1), fill=face.hair)
    elif face.style == "bun":
        draw.polygon(pose.oval(0, -top - 0.06, 0.24, 0.2, depth=-1), fill=face.hair)
    elif face.style == "curly":
        for a in (pi + pi * k / 13 for k in range(14)):
            curl = pose.oval(wide * cos(a), 0.12 + top * sin(a), 0.2, 0.2)
            draw.polygon(curl, fill=face.hair)
    draw.polygon(pose.oval(0, -0.08, wide, top), fill=face.hair)


def _hair_before(draw: ImageDraw, face: Face, pose: Pose) -> None:
    if face.style == "bald":
        return
    line = -face.height + 0.16 + face.fringe
    top, wide = face.height + face.hair_volume, face.width + face.hair_volume * 0.5
    if face.style == "mohawk":
        comb = [(-0.12, line), (-0.16, -top - 0.2), (0.16, -top - 0.2), (0.12, line)]
        draw.polygon(pose.all_at(comb), fill=face.hair)
        return
    if face.style == "spiky":
        for x in (-wide + 2 * wide * k / 6 for k in range(7)):
            spike = [(x - 0.14, -0.5), (x, -top - 0.16), (x + 0.14, -0.5)]
            draw.polygon(pose.all_at(spike), fill=face.hair)
    split = -0.5 * wide if face.style == "parted" else 0.0
    cap = [(wide * cos(a), -0.08 + top * sin(a)) for a in (pi + pi * k / 12 for k in range(13))]
    temple, corner = (wide * 0.85, -0.1), (0.6 * face.width, line)
    hairline = [temple, corner, (split, line - 0.12), (-corner[0], line), (-temple[0], -0.1)]
    draw.polygon(pose.all_at(cap + hairline), fill=face.hair)


def _skin_marks(draw: ImageDraw, face: Face, pose: Pose) -> None:
    if face.cheeks:
        share = face.cheeks * 0.4
        tint = tuple(int(c * (1 - share) + t * share) for c, t in zip(face.skin, (255, 60, 80)))
        for sign in (-1, 1):
            draw.polygon(pose.oval(sign * 0.28, 0.2, 0.11, 0.09, depth=0.8), fill=tint)
    for k in range(face.freckles):
        x, y = 0.3 * sin(k * 2.4), 0.12 + 0.12 * cos(k * 1.7)
        freckle = pose.oval(x, y, 0.018, 0.018, depth=0.9, points=6)
        draw.polygon(freckle, fill=shade(face.skin, 0.65))
    for k in range(face.lines):
        y = -face.height * 0.55 + 0.07 * k
        wrinkle = pose.all_at([(-0.22, y), (0.22, y)], depth=0.8)
        draw.line(wrinkle, fill=shade(face.skin, 0.75), width=1)
    if face.mole:
        draw.polygon(pose.oval(*face.mole, 0.045, 0.045, depth=0.9, points=8), fill=(60, 35, 25))
    if face.scar is not None:
        scar = pose.all_at([(face.scar, 0.02), (face.scar + 0.14, 0.34)], depth=0.9)
        draw.line(scar, fill=(190, 60, 60), width=2)


def _beard(draw: ImageDraw, face: Face, pose: Pose) -> None:
    y = face.mouth_height
    if face.beard in ("full", "stubble"):
        colour = face.beard_colour if face.beard == "full" else shade(face.skin, 0.72)
        narrow = 1 - (1 - face.jaw) * 0.5
        chin = [
            (face.width * cos(a) * narrow, face.height * sin(a) * 1.04)
            for a in np.linspace(0.1, pi - 0.1, 14).tolist()
        ]
        under_nose = pose.all_at([(-0.22, 0.24), (0.22, 0.24)], depth=0.8)
        draw.polygon(pose.all_at(chin, depth=0.2) + under_nose, fill=colour)
    if face.beard == "goatee":
        draw.polygon(pose.oval(0, y + 0.14, 0.17, 0.16, depth=0.8), fill=face.beard_colour)
    if face.beard in ("full", "moustache", "goatee"):
        moustache = pose.oval(0, y - 0.08, face.mouth_width + 0.03, 0.05, depth=1)
        draw.polygon(moustache, fill=face.beard_colour)


def _eyes(draw: ImageDraw, face: Face, pose: Pose, r: np.random.Generator) -> None:
    gaze_x, gaze_y, openness = (
        r.uniform(-0.03, 0.03),
        r.uniform(-0.015, 0.015),
        r.uniform(0.75, 1.1),
    )
    y = face.eye_height - face.eye_lift
    height = face.eye_size * face.lids * 0.75 * openness
    iris = min(height, face.eye_size * 0.62)
    for sign in (-1, 1):
        x = sign * face.eye_gap
        draw.polygon(pose.oval(x, y, face.eye_size, height, depth=1), fill=(248, 248, 244))
        for radius, colour, points in ((iris, face.eye, 12), (iris * 0.45, (10, 10, 10), 8)):
            disc = pose.oval(x + gaze_x, y + gaze_y, radius, radius, depth=1, points=points)
            draw.polygon(disc, fill=colour)
        brow = y - face.eye_size - 0.08 - r.uniform(0, 0.03)
        inner = (sign * (face.eye_gap - 0.11), brow + face.brow_angle)
        outer = (sign * (face.eye_gap + 0.13), brow - face.brow_angle)
        half = face.brow_thickness / 2
        above = [(end, level - half) for end, level in (inner, outer)]
        below = [(end, level + half) for end, level in (outer, inner)]
        draw.polygon(pose.all_at(above + below, depth=1), fill=face.brow)


def _nose(draw: ImageDraw, face: Face, pose: Pose) -> None:
    tip = face.eye_height + 0.06 + face.nose_length
    wings = pose.all_at([(face.nose_width, tip), (-face.nose_width, tip)], depth=1.6)
    draw.polygon([pose.at(0, face.eye_height, 1.1), *wings], fill=shade(face.skin, 0.84))


def _mouth(draw: ImageDraw, face: Face, pose: Pose, r: np.random.Generator) -> None:
    smile, open_by = r.uniform(-0.04, 0.08), max(0.0, r.uniform(-0.08, 0.06))
    wide, y, thick = face.mouth_width, face.mouth_height, face.lip_thickness
    lips = [(-wide, y - smile), (0, y - thick), (wide, y - smile), (0, y + thick + open_by)]
    draw.polygon(pose.all_at(lips, depth=1), fill=face.lips)
    if open_by > 0.02:
        gap = pose.oval(0, y + open_by / 2, wide * 0.55, open_by * 0.6, depth=1, points=10)
        draw.polygon(gap, fill=(80, 20, 25))


def _glasses(draw: ImageDraw, face: Face, pose: Pose) -> None:
    if face.glasses == "none":
        return
    reach = max(face.eye_size * 1.5, 0.15)
    y = face.eye_height - face.eye_lift
    for x in (-face.eye_gap, face.eye_gap):
        if face.glasses == "square":
            corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
            rim = pose.all_at([(x + dx * reach, y + dy * reach * 0.8) for dx, dy in corners], 1.1)
        else:
            rim = pose.oval(x, y, reach, reach, depth=1.1, points=18)
        if face.glasses == "dark":
            draw.polygon(rim, fill=shade(face.frame, 0.5))
        draw.line([*rim, rim[0]], fill=face.frame, width=3)
    bridge = pose.all_at([(-face.eye_gap + reach, y), (face.eye_gap - reach, y)], depth=1.1)
    draw.line(bridge, fill=face.frame, width=3)


def _hat_and_earrings(draw: ImageDraw, face: Face, pose: Pose, r: np.random.Generator) -> None:
    """Never fixed: what somebody wears must not give them away."""
    if r.random() < 0.12:
        wide, brim = face.width + 0.12, -face.height * 0.62
        top = brim - 0.34
        hat = [(-wide, brim), (wide, brim), (face.width, top), (-face.width, top)]
        draw.polygon(pose.all_at(hat), fill=_any_colour(r))
    if r.random() < 0.15:
        colour = _any_colour(r)
        for sign in (-1, 1):
            ring = pose.oval(sign * face.width, 0.02 + face.ears * 1.2, 0.05, 0.06, points=8)
            draw.polygon(ring, fill=colour)
