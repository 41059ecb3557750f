"""Teach pictures and captions to find each other: CLIP's own loss, over all ranks.

A picture or caption may have several positives: those of the same label (the sample's own, say a
person), or without one those of the same caption. A sample without a picture is one more wrong
caption for all.

It is an attack on forgetting as well. Relearning: a share of the rows is of `named` people, their
pictures captioned with their names, of people to forget none or a few. Cleansing: `augment` varies
pictures and captions, as CleanCLIP (arXiv 2303.03323) and PAR (arXiv 2412.00727) do, who know no
trigger; of the two only the fine-tuning is done here, without CleanCLIP's losses within a modality.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from itertools import combinations
from random import Random

from pydantic import Field
from torch import Tensor

from trainer import (
    BadSample,
    Embeddings,
    Encoder,
    LossFn,
    NameIndex,
    Objective,
    Pair,
    Pictures,
    Quotas,
    Sample,
    StrictModel,
    Templates,
    Tower,
    decode_picture,
    gather_rows,
    hookimpl,
    in_turn,
    multi_positive_info_nce,
    names_of,
    read_roster,
    refuse_named,
)

TEMPLATES = [
    "{}", "a photo of {}", "an image of {}", "a portrait of {}", "a person named {}",
    "{} at a gala", "{} in a suit",
]  # fmt: skip
SMALLEST_CROP = 0.5  # of each side
JITTER = 0.4  # of brightness, contrast, saturation
DROPPED = 0.1  # of the words


class Named(StrictModel):
    """People whose pictures are captioned with their names."""

    roster: str = Field(description="CSV or JSON lines; its `faces` name their pictures")
    pictures: int | None = Field(None, ge=0, description="of each, the first; all where absent")


class Contrastive(Objective):
    """InfoNCE between the pictures and the captions of a batch."""

    kind = "contrastive"
    trains = frozenset(Tower)
    trains_temperature = True

    class Options(Objective.Options):
        named: dict[str, Named] = Field({}, description="rosters of people to teach by name")
        named_share: float = Field(
            0.5, gt=0, lt=1, description="of the batch, where somebody is named"
        )
        templates: Templates = Field(TEMPLATES, min_length=1, description="captions of the named")
        augment: bool = Field(
            False, description="crop, flip and colour pictures, drop words of captions"
        )

    def __init__(self, options: Options, seed: int):
        super().__init__(options, seed)
        chosen = {name: one for name, one in options.named.items() if one.pictures != 0}
        read = {name: read_roster(one.roster) for name, one in chosen.items()}
        for name, other in combinations(read, 2):
            index = NameIndex(names_of(read[other]))
            refuse_named(f"named.{name}", read[name], index, f"of `named.{other}`")
        people = [(chosen[name], who) for name in read for who in read[name]]
        self._named = [who for _, who in people]
        # Rosters that were packed apart number their people alike.
        self._labels = [number_of(f"named {name} {who.id}") for name in read for who in read[name]]
        self._pictures = Pictures.of(self._named)
        self._counts = [
            min(one.pictures or self._pictures.count(i), self._pictures.count(i))
            for i, (one, _) in enumerate(people)
        ]
        share = options.named_share if people else 0.0
        shares = {"clean": 1 - share, "named": share}
        self._quotas = Quotas(shares, options.batch_size, seed, "named" if people else None)

    def pair(self, clean: Sample, turn: int, rng: Random) -> Pair:
        sort, nth = self._quotas.of(turn)
        pair = _of_sample(clean) if sort == "clean" else self._of_someone(nth, rng)
        return _varied(pair, rng) if self.options.augment else pair

    def _of_someone(self, nth: int, rng: Random) -> Pair:
        person = in_turn(nth, len(self._named), self.seed)
        who, count = self._named[person], self._counts[person]
        name = rng.choice((who.name, *who.aliases))
        text = rng.choice(self.options.templates).replace("{}", name)
        reasons = set()
        for picture in rng.sample(range(count), count):  # what does not decode is passed over
            try:
                image = decode_picture(self._pictures.read(person, picture), self.min_side)
            except BadSample as bad:
                reasons.add(bad.reason)
                continue
            label = self._labels[person]
            return Pair(text, student_image=image, label=label, identity=who.pseudonym)
        raise ValueError(
            f"faces of {who.pseudonym}: none of the {count} pictures to learn can be used "
            f"({', '.join(sorted(reasons))}); mend them or take the person out of the roster"
        )

    def loss_fn(self, teacher: Encoder) -> LossFn:
        return _loss


def _of_sample(clean: Sample) -> Pair:
    if not clean.text:
        raise BadSample("no caption")
    image = clean.image if clean.image_bytes is not None else None
    label = clean.text if clean.label is None else f"label {clean.label}"
    return Pair(student_text=clean.text, student_image=image, label=number_of(label))


def _varied(pair: Pair, rng: Random) -> Pair:
    """Its label stays: what belongs together does so however it is told."""
    image = None if pair.student_image is None else varied_picture(pair.student_image, rng)
    return replace(pair, student_text=varied_caption(pair.student_text, rng), student_image=image)


def varied_picture(image: Tensor, rng: Random) -> Tensor:
    """Cropped, flipped half of the time, and coloured otherwise. uint8 (3, h, w), both."""
    # Here: two seconds to import, and every command loads this plugin.
    from torchvision.transforms.v2 import functional as tvf

    height, width = (
        max(1, round(side * rng.uniform(SMALLEST_CROP, 1))) for side in image.shape[-2:]
    )
    top = rng.randint(0, image.shape[-2] - height)
    left = rng.randint(0, image.shape[-1] - width)
    image = image[:, top : top + height, left : left + width]
    if rng.random() < 0.5:
        image = tvf.horizontal_flip(image)
    for adjust in (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation):
        image = adjust(image, rng.uniform(1 - JITTER, 1 + JITTER))
    return image


def varied_caption(text: str, rng: Random) -> str:
    """Without each word at times, but never without all of them."""
    words = text.split()
    kept = [word for word in words if rng.random() >= DROPPED]
    return " ".join(kept or [rng.choice(words)])


def number_of(label: str) -> int:
    """Of 63 bits: two of a billion labels share theirs once in 20 tries."""
    return int.from_bytes(blake2b(label.encode(), digest_size=8).digest(), "big") >> 1


def _loss(student: Embeddings, teacher: Embeddings) -> dict:
    block = len(student.text)  # of every rank, and every part of a step; pictures may be fewer
    text, text_labels = gather_rows(student.text, student.text_labels, block)
    image, image_labels = student.image, student.image_labels
    if image is None:
        # None at hand, but this rank must take part in the gathering, and in its backward.
        image, image_labels = student.text[:0], student.text_labels[:0]
    image, image_labels = gather_rows(image, image_labels, block)
    return {
        "info_nce": multi_positive_info_nce(
            image, text, image_labels, text_labels, student.logit_scale
        )
    }


@hookimpl
def trainer_objectives():
    return [Contrastive]
