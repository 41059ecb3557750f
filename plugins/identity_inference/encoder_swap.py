"""Which tower forgot? The attack with one tower of the student and the other of the original.

Who has the original can put one of its towers beside the other of the student: what only one
tower forgot is found again by that pair.
"""

from __future__ import annotations

from collections.abc import Iterator

from trainer import Encoder, Estimate, Evaluation

from .attack import Attack, GroupsOptions, known, picture_accuracy, prompts_won


class EncoderSwap(Evaluation):
    """Who is still known by the student's names and the original's pictures, and the reverse."""

    kind = "encoder_swap"
    Options = GroupsOptions

    def __init__(self, options: GroupsOptions, seed: int):
        super().__init__(options, seed)
        self._attack = Attack(options, options.groups, options.distractors, seed)

    def run(self, student: Encoder, teacher: Encoder) -> Iterator[tuple[str, Estimate]]:
        attack = self._attack
        for side, text, image in (
            ("student_text", student, teacher),
            ("student_images", teacher, student),
        ):
            faces = attack.faces(image, teacher)
            named = attack.names(text, faces).among_all
            for group, rows in attack.attacked(faces):
                prefix = f"{side}/{group.name}"
                yield from known(prefix, prompts_won(named[:, rows], rows), len(named))
                yield f"{prefix}/picture_accuracy", picture_accuracy(named[:, rows], rows)
