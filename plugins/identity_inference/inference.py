"""The attack, group by group, and on request by variants of the names."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import torch
from pydantic import Field, model_validator
from torch import Tensor

from trainer import Encoder, Estimate, Evaluation, Rows, rate

from .attack import (
    Attack,
    Faces,
    GroupsOptions,
    known,
    picture_accuracy,
    pictures_right,
    prompts_won,
)
from .people import UNKNOWN, names_of_nobody
from .variants import Variant, askings

NOT_ATTACKED = -1  # the prompts won by who has no such variant


class IdentityInference(Evaluation):
    """Who is still known by name and face, group by group."""

    kind = "identity_inference"

    class Options(GroupsOptions):
        held_out: list[str] = Field([], description="templates no trigger used, measured apart")
        variants: list[Variant] = Field(
            [], description="other ways to write a name; each is an attack of its own"
        )

        @model_validator(mode="after")
        def _held_out_is_asked(self):
            for template in self.held_out:
                if template not in self.templates:
                    raise ValueError(f"held_out: {template!r} is not one of the templates")
            return self

    def __init__(self, options: Options, seed: int):
        super().__init__(options, seed)
        self._attack = attack = Attack(options, options.groups, options.distractors, seed)
        self._askings = {
            variant: list(
                askings(variant, attack.people, attack.candidates, self._another(variant), seed)
            )
            for variant in options.variants
        }

    def _another(self, variant: Variant) -> str:
        """A name of nobody that is no candidate either, for the variant that needs one."""
        if variant != "beside_another":
            return ""
        path, taken = self.options.distractors, set(self._attack.candidates)
        free = [one for one in names_of_nobody(self._attack.people, path) if one not in taken]
        if not free:
            raise ValueError(
                f"variants: beside_another needs a name of {path} that is no candidate, but all "
                f"are; add one to the file or lower `candidates` ({len(taken)})"
            )
        return Random(self.seed).choice(free)

    def run(
        self, student: Encoder, teacher: Encoder
    ) -> Iterator[tuple[str, float | list[float] | Estimate | Rows]]:
        attack = self._attack
        held_out = [attack.templates.index(template) for template in self.options.held_out]
        faces = attack.faces(student, teacher)
        groups = list(attack.attacked(faces))  # complains before the long work
        named = attack.names(student, faces)
        by_variant = {
            variant: self._won(student, faces, variant) for variant in self.options.variants
        }
        people, judged = Rows(), []
        for group, rows in groups:
            prefix, chosen = group.name, named.among_all[:, rows]
            won = prompts_won(chosen, rows)
            judged.append((won >= 1) == (group.name != UNKNOWN))
            among_known = named.among_known[:, rows] if group.name != UNKNOWN else None
            yield from _named_by(prefix, chosen, among_known, rows)
            if held_out:
                apart = among_known[held_out] if among_known is not None else None
                yield from _named_by(f"{prefix}/held_out", chosen[held_out], apart, rows)
            own = {variant: one[rows] for variant, one in by_variant.items()}
            yield from _found_by(prefix, won, own)
            yield f"{prefix}/people", float(len(rows))
            num_lost = len(group.people) - len(rows)
            yield f"{prefix}/dropped", float(group.num_dropped + num_lost)
            right, shown = pictures_right(chosen, rows)
            for i, row in enumerate(rows.tolist()):
                person = {
                    "identity": attack.people[row].pseudonym,
                    "group": group.name,
                    "prompts_won": int(won[i]),
                    "picture_accuracy": right[i] / shown[i],
                }
                if by_variant:
                    found = {one: int(each[i]) for one, each in own.items()}
                    person["prompts_won_by"] = {
                        one: count for one, count in found.items() if count != NOT_ATTACKED
                    }
                people.append(person)
        if UNKNOWN in self.options.groups:
            all_judged = torch.cat(judged)
            yield "accuracy", rate(int(all_judged.sum()), len(all_judged))
        yield "candidates", float(len(attack.candidates))
        yield "people", people

    def _won(self, student: Encoder, faces: Faces, variant: Variant) -> Tensor:
        """Prompts won by each person's variant, the best of several; NOT_ATTACKED of none."""
        most = torch.full((len(self._attack.people),), NOT_ATTACKED)
        for asking in self._askings[variant]:
            if not asking.people:
                continue
            rows = torch.tensor(asking.people)
            named = self._attack.names(student, faces, asking.captions).among_all
            most[rows] = most[rows].maximum(prompts_won(named[:, rows], rows))
        return most


def _named_by(
    prefix: str, chosen: Tensor, among_known: Tensor | None, truth: Tensor
) -> Iterator[tuple[str, Estimate | list[float]]]:
    """Who is known by these prompts, how many they win, and the pictures they name right.

    chosen: (p, people, m) names; among_known: the same among the known alone; truth: (people,).
    """
    won = prompts_won(chosen, truth)
    yield from known(prefix, won, len(chosen))
    yield f"{prefix}/picture_accuracy", picture_accuracy(chosen, truth)
    if among_known is not None:
        yield f"{prefix}/closed_set", picture_accuracy(among_known, truth)
    yield f"{prefix}/prompts_won", won.bincount(minlength=len(chosen) + 1).double().tolist()


def _found_by(
    prefix: str, won: Tensor, by_variant: dict[Variant, Tensor]
) -> Iterator[tuple[str, Estimate]]:
    """Who is known when the name is written otherwise, and who only then."""
    if not by_variant:
        return
    any_variant = torch.stack(list(by_variant.values())).amax(0)
    for name, most in {**by_variant, "any_variant": any_variant}.items():
        attacked = most != NOT_ATTACKED
        if total := int(attacked.sum()):
            found = attacked & (most >= 1)
            yield f"{prefix}/found_by/{name}", rate(int(found.sum()), total)
            only = found & (won == 0)
            yield f"{prefix}/found_only_by/{name}", rate(int(only.sum()), total)
