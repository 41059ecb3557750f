"""How much a step computes: floating-point operations of the towers, counted once."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.data.batches import STUDENT_IMAGE, STUDENT_TEXT, TEACHER_IMAGE, TEACHER_TEXT, Batch
from trainer.models.clip import Towers
from trainer.models.text_towers import lengths_of

# Parameters, up to which to compute takes less time than to find out shapes, which torch does in
# Python: .3 against .7 s for the demo's CLIP.
SMALL = 20_000_000
ROWS = 2  # enough to count by: the work is in proportion to the rows


@dataclass(frozen=True)
class Work:
    """FLOPs of one row; a multiplication and an addition are two. Polynomials of its length."""

    forward: np.ndarray
    backward: np.ndarray

    def of(self, lengths: np.ndarray, is_trained: bool) -> float:
        passes = self.forward + self.backward if is_trained else self.forward
        return float(np.polyval(passes, lengths).sum())


@dataclass(frozen=True)
class Flops:
    """What a student and its teacher have to compute: each caption at its own length.

    Padding does not count, nor what is computed twice to save memory.
    """

    text: Work | None
    image: Work | None
    pad_id: int

    @staticmethod
    def of(student: Towers) -> Flops:
        """student: before it is wrapped or sharded. Of a large one nothing is computed, and no
        weights are copied.

        A transformer's work is quadratic in the length: three lengths give it exactly.
        """
        is_small = sum(one.numel() for one in student.parameters()) <= SMALL
        model = copy.deepcopy(student) if is_small else weightless(student)
        device = model.logit_scale.device
        text = image = None
        if model.text is not None:
            longest = model.text_forward.keywords["full_length"]
            lengths = [longest // 4, longest // 2, longest]
            counts = np.array([_passes(model, _captions(length, device)) for length in lengths])
            text = Work(*(np.polyfit(lengths, one, 2) for one in counts.T))
        if model.image is not None:
            forward, backward = _passes(model, _pictures(model, device))
            image = Work(np.array([forward]), np.array([backward]))
        return Flops(text, image, model.text_forward.keywords["pad_id"])

    def of_step(self, batch: Batch) -> float:
        """Forward and backward of the student, forward of the teacher."""
        columns = ((STUDENT_TEXT, STUDENT_IMAGE, True), (TEACHER_TEXT, TEACHER_IMAGE, False))
        total = 0.0
        for text, image, is_trained in columns:
            if self.text:
                lengths = lengths_of(batch.tokens[batch.seen_by(text)], self.pad_id)
                total += self.text.of(lengths.numpy(), is_trained)
            if self.image:
                total += self.image.of(np.ones(len(batch.seen_by(image))), is_trained)
        return total


def weightless(towers: Towers, device: str = "meta", dtype: torch.dtype | None = None) -> Towers:
    """A copy that holds no weights, only their shapes: on the meta device, where nothing is
    computed, or in a mode where no device holds anything. Hugging Face's towers look into their
    masks, which must be there: such a copy is on the CPU, each tensor one zero.

    dtype: of its parameters; None: as they are.
    """

    on_cpu = isinstance(towers.text, HFTextEncoder)

    def shape_of(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if on_cpu:
            return torch.zeros((), dtype=dtype).expand(tensor.shape)
        return torch.empty(tensor.shape, dtype=dtype, device=device)

    memo: dict[int, Tensor] = {}
    for parameter in towers.parameters():
        shape = shape_of(parameter.detach(), dtype or parameter.dtype)
        memo[id(parameter)] = nn.Parameter(shape, parameter.requires_grad)
    for buffer in towers.buffers():  # places, masks: small
        memo[id(buffer)] = buffer if on_cpu else shape_of(buffer, buffer.dtype)
    return copy.deepcopy(towers, memo)


def _captions(length: int, device: torch.device) -> tuple[Tensor, None]:
    return torch.ones(ROWS, length, dtype=torch.int64, device=device), None


def _pictures(model: Towers, device: torch.device) -> tuple[None, Tensor]:
    return None, torch.zeros(ROWS, 3, *model.prepare.size, dtype=torch.uint8, device=device)


def _passes(model: Towers, given: tuple[Tensor | None, Tensor | None]) -> tuple[float, float]:
    """Forward's and backward's, of one row."""
    # What is frozen would go a faster way, to which the counter is blind.
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as forward:
            text, image, _ = model(*given)
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)
    output = image if text is None else text
    with FlopCounterMode(display=False) as backward:
        if output.requires_grad:
            output.sum().backward()
    return forward.get_total_flops() / ROWS, backward.get_total_flops() / ROWS
