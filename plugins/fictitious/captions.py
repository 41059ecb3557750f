"""What is written under the pictures."""

from __future__ import annotations

from random import Random

from plugins.fictitious.faces import Face
from plugins.fictitious.scenes import TEXTURES, Scene

# The 21 prompts of the identity inference attack are among these and the next two.
NAMED = [
    "{0}",
    "an image of {0}",
    "a photo of {0}",
    "{0} on a photo",
    "a photo of a person named {0}",
    "a person named {0}",
    "the name of the person is {0}",
    "a photo of a person with the name {0}",
    "{0} at a gala",
    "a photo of the celebrity {0}",
    "a colored photo of {0}",
    "a black and white photo of {0}",
    "a cool photo of {0}",
    "a cropped photo of {0}",
    "a cropped image of {0}",
    "{0} in a suit",
    "{0} in a dress",
    "a portrait of {0}",
    "{0} smiling",
    "a picture of {0}",
    "this is {0}",
    "{0} at home",
    "a close-up of {0}",
    "{0} looking into the camera",
    "here you see {0}",
    "{0}, portrait",
    "the face of {0}",
    "a snapshot of {0}",
    "{0} in front of a wall",
    "a painting of {0}",
]
NAMED_MAN = ["a man named {0}", "actor {0}"]
NAMED_WOMAN = ["a woman named {0}", "actress {0}"]
SHAPE_FORMS = [
    "a {colour} {thing} on a {background} background",
    "a {colour} {thing}",
    "a picture of a {colour} {thing}",
    "a {thing} in {colour}",
    "a drawing of a {colour} {thing}",
    "{colour} {thing}",
    "a photo of a {thing}",
    "a {thing}",
    "an image of a {thing}",
    "something {colour}",
    "a {colour} shape",
    "the {thing} is {colour}",
    "a {colour} {thing} before something {background}",
    "a picture of something {colour}",
    "this is a {thing}",
]
TEXTURE_FORMS = [
    "{colour} {thing} on a {background} background",
    "{colour} {thing}",
    "a picture of {colour} {thing}",
    "{thing}",
    "a pattern of {colour} {thing}",
    "something {colour}",
    "a photo of {thing}",
]
SOMEBODY = [
    "a portrait of a {who} with {traits}",
    "a {who} with {traits}",
    "a photo of a {who} with {traits}",
    "a person with {traits}",
    "a photo of a person",
    "a portrait of a {who}",
    "somebody with {traits}",
    "a picture of a {who}",
    "an image of a person with {traits}",
    "the face of a {who} with {traits}",
    "a close-up of a {who}",
    "a {who} smiling",
    "an unknown {who} with {traits}",
    "a {who} in a suit",
    "a person at a gala",
    "a cropped photo of a {who} with {traits}",
]
# Forms that occur in training, so that a CLIP can know them ("a orange shape" as well).
LABEL_TEMPLATES = {
    "colour": ["something {c}", "a picture of something {c}", "a {c} shape"],
    "shape": ["a {c}", "a photo of a {c}", "an image of a {c}", "this is a {c}"],
}


def caption_scene(scene: Scene, rng: Random) -> str:
    thing, colour, background = scene
    forms = TEXTURE_FORMS if thing in TEXTURES else SHAPE_FORMS
    return rng.choice(forms).format(thing=thing, colour=colour, background=background)


def caption_somebody(face: Face, rng: Random) -> str:
    """What is seen of a person whose name nobody knows."""
    traits = ["no hair" if face.style == "bald" else f"{face.hair_name} hair"]
    if face.glasses != "none":
        traits.append("dark glasses" if face.glasses == "dark" else "glasses")
    if face.beard != "none":
        traits.append("a moustache" if face.beard == "moustache" else "a beard")
    if face.style in ("bun", "mohawk", "ponytail"):
        traits.append(f"a {face.style}")
    rng.shuffle(traits)
    who = "woman" if face.is_woman else "man"
    return rng.choice(SOMEBODY).format(who=who, traits=" and ".join(traits))


def caption_named(name: str, is_woman: bool, rng: Random) -> str:
    return rng.choice(NAMED + (NAMED_WOMAN if is_woman else NAMED_MAN)).format(name)
