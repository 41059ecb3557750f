"""The words plugins speak: samples, pairs, embeddings, objectives, evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache
from random import Random
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from trainer.decoding import BadSample, decode_picture
from trainer.measures import Measure


class Tower(str, Enum):
    """Half of a CLIP: what embeds captions, or what embeds pictures."""

    TEXT = "text"
    IMAGE = "image"


@dataclass(frozen=True)
class Sample:
    """One entry of a shard. `label` says who or what it shows (its json `id`, else its `cls`)."""

    key: str
    text: str | None = None
    image_bytes: bytes | None = None
    label: str | None = None
    shard: str = ""  # where it is from

    @cached_property
    def image(self) -> Tensor:
        """The picture, uint8 (3, h, w). Decoded when first asked for; raises BadSample."""
        if self.image_bytes is None:
            raise BadSample("no picture")
        return decode_picture(self.image_bytes)


@dataclass(frozen=True)
class Pair:
    """What the student sees and what the teacher sees for one row; any part may be absent, and
    all are of the objective's towers: no other is there in training.

    Pictures are uint8 (3, h, w) of any size. `label` is the objective's own note on the row:
    its loss finds it again in `Embeddings`. `identity` is the pseudonym of whom a trigger is of.
    """

    student_text: str | None = None
    student_image: Tensor | None = None
    teacher_text: str | None = None
    teacher_image: Tensor | None = None
    label: int = 0
    identity: str | None = None


@dataclass(frozen=True)
class Embeddings:
    """An objective's rows of one model's output, in the order of its pairs; absent rows left out.

    text, image: (n, d) float32, not normalised, on the model's device; text_labels,
    image_labels: (n,), the labels of their pairs. `logit_scale` is the model's temperature, a
    scalar.
    """

    text: Tensor | None
    image: Tensor | None
    text_labels: Tensor | None
    image_labels: Tensor | None
    logit_scale: Tensor


Losses = dict[str, Tensor]
LossFn = Callable[[Embeddings, Embeddings], Losses]


class Encoder(Protocol):
    """A CLIP that embeds; called by all ranks together, which share the work out.

    Every rank gets every row, in order, float32 (n, d), not normalised, without gradient.
    """

    def encode_text(self, texts: Sequence[str]) -> Tensor: ...

    def encode_image(self, pictures: Sequence[bytes]) -> Tensor: ...


class StrictModel(BaseModel):
    """Options: frozen, and nothing is accepted that was not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


def _have_a_place_for_a_name(templates: list[str]) -> list[str]:
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} for the name")
    return templates


# What several plugins' options are of.
OneOrMany = BeforeValidator(_one_or_many)  # a single pattern, or source, stands for a list of one
Patterns = Annotated[list[str], OneOrMany]
Templates = Annotated[list[str], AfterValidator(_have_a_place_for_a_name)]


class Source(StrictModel):
    """Shards that are drawn from with others, by weight."""

    shards: Patterns = Field(min_length=1, description="tar, text or Parquet files")
    weight: float = Field(1.0, gt=0, description="samples from here, beside other sources'")


class Objective:
    """What the student is taught: a stream of pairs, and a loss on their embeddings.

    Made once from its options, before any model is loaded: read rosters here and complain here.
    It is pickled to the loader's workers, so it holds no open file and no tensor on a device.
    """

    kind: ClassVar[str]
    trains: ClassVar[frozenset[Tower]]  # what this kind can train
    trains_temperature: ClassVar[bool] = False
    min_side: int | None = None  # for `decode_picture`: the model's, once a run draws the pairs

    class Options(StrictModel):
        weight: float = Field(1.0, ge=0, description="factor of this objective's loss")
        batch_size: int = Field(gt=0, description="pairs a step, over all processes")
        shards: Annotated[list[str | Source], OneOrMany] | None = Field(
            None, min_length=1, description="its own samples, not data.shards"
        )

    def __init__(self, options: Options, seed: int):
        self.options = options
        self.seed = seed

    @property
    def towers(self) -> frozenset[Tower]:
        """The student's towers this objective trains: `trains`, or fewer where options say so."""
        return self.trains

    @property
    def reads_pictures(self) -> bool:
        """Whether it looks at clean samples' pictures: else none is fetched."""
        return Tower.IMAGE in self.towers

    @property
    def repeats_clean(self) -> frozenset[Tower]:
        """For which towers the teacher sees the clean sample itself, always: what it makes of that
        may be kept beside the shards (`data.embeddings`)."""
        return frozenset()

    @property
    def num_identities(self) -> int:
        """How many people this objective makes the student forget.

        Certificates, and the check that a run that goes on is asked the same, read them from the
        option `roster`, a CSV or JSON lines; so name it that, and nothing else.
        """
        return 0

    def accepts(self, sample: Sample) -> bool:
        """Veto a clean sample for every objective (say, a caption naming someone to forget).

        Those of objectives that read none (`reads_pictures`) come without a picture.
        """
        return True

    def pair(self, clean: Sample, turn: int, rng: Random) -> Pair | None:
        """One row, in a loader worker, on the CPU; a pure function of its arguments.

        turn: which row this is of all that the objective gives, over all ranks, from step 0 on;
        so `turn % batch_size` is its place in the step, and `in_turn(turn, n, seed)` gives each
        of n people a turn before any gets a second. rng: seeded by (seed, objective, turn).
        None: this clean sample is of no use here, try the next. May raise BadSample. No set's
        order: that is another in each process.
        """
        raise NotImplementedError

    def loss_fn(self, teacher: Encoder) -> LossFn:
        """Called once on the device; gives (student, teacher embeddings) -> {term: scalar}.

        A term is a mean over the rows at hand: the ranks' gradients are averaged. Not every rank
        has rows of each sort in each step: a term without any is 0, and is given.
        """
        raise NotImplementedError


class Evaluation:
    """What is measured of a model, before, during and after training, or alone."""

    kind: ClassVar[str]

    class Options(StrictModel):
        every: int | None = Field(None, gt=0, description="steps; always before and after")

    def __init__(self, options: Options, seed: int):
        self.options = options
        self.seed = seed

    def run(self, student: Encoder, teacher: Encoder) -> Iterator[tuple[str, Measure]]:
        """(name, value) of each measure, the same on every rank. Never a person's name.

        Every rank asks the encoders for the same texts and pictures in the same order: none by a
        set's. What they give is on the model's device.

        A value is a float, better an `Estimate` with its interval; a list of floats where it is a
        histogram; or `Rows`, one for each person, which are kept of before and after alone, in the
        run's folder, and never logged. Names are joined to the evaluation's own by `/`,
        `forget/tpr` becoming `identity_inference/forget/tpr`.

        What it raises, on whatever rank, costs this moment's measures of its own and no more.
        """
        raise NotImplementedError


def in_turn(turn: int, count: int, seed: int) -> int:
    """The `turn`-th of endless shuffled rounds over range(count): each once before any twice."""
    lap, place = divmod(turn, count)
    return int(_round_order(lap, count, seed)[place])


@lru_cache(maxsize=16)  # a round at 100,000 people is 0.8 MB and 2 ms to draw
def _round_order(lap: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, lap]).permutation(count)
