"""What a forward keeps for its backward, byte by byte, where nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from trainer.data.batches import STUDENT_IMAGE, STUDENT_TEXT, Batch
from trainer.models.blocks import lean
from trainer.models.clip import Towers
from trainer.models.packing import Packed, pack_if_shorter, takes_packed
from trainer.models.text_towers import cut_text, groups_of, short_text
from trainer.planning.flops import weightless
from trainer.strategies.preparing import innermost_blocks_of


@dataclass(frozen=True)
class Kind:
    """How a strategy computes a student.

    device: cpu or cuda, which need not be there. weights: as they are when it computes with them.
    autocast: None, or what float32 weights are computed in. is_shared_out: each block is gathered.
    """

    device: str = "cpu"
    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    is_shared_out: bool = False


@dataclass(frozen=True)
class Gradients:
    """Bytes a trained value: of a gradient that is being made, and of what is kept of it when it
    is; copied: while it is sent. bucket: bytes, through which they go. together: values that are
    sent at a time, at most.
    """

    whole: float
    kept: float
    bucket: int = 0
    copied: int = 0
    together: int = 0


@dataclass(frozen=True)
class Use:
    """Of a parameter: its number of values; bytes that were kept when it was used first and last.

    Its gradient begins with the last use, and is whole with the first.
    """

    values: int
    first: int
    last: int


@dataclass
class Rehearsal:
    """What is kept at the end of the forward, in bytes.

    uses: of each trained parameter. blocks: of each that repeats what it keeps, and what enters
    it. largest: of all tensors kept.
    """

    kept: int = 0
    uses: dict[str, Use] = field(default_factory=dict)
    blocks: list[tuple[int, int]] = field(default_factory=list)
    largest: int = 0

    def activations(self, recomputes: bool) -> int:
        """recomputes: of a block only what enters it is kept, and one is whole at a time."""
        if not (recomputes and self.blocks):
            return self.kept
        whole, entering = (sum(sizes) for sizes in zip(*self.blocks))
        return self.kept - whole + entering + max(kept for kept, _ in self.blocks)

    def fullest_bucket(self, capacity: int) -> int:
        """Values of the gradients that are sent together: of as many as there is room for."""
        fullest = filled = 0
        for use in sorted(self.uses.values(), key=lambda use: use.first, reverse=True):
            if filled + use.values > capacity:
                filled = 0
            filled += use.values
            fullest = max(fullest, filled)
        return fullest

    def peak(self, of_gradients: Gradients, recomputes: bool) -> int:
        """The most, in a backward, of what is kept and of the gradients that take its place; with
        what passes through its first operations.
        """
        end = self.activations(recomputes)
        share = end / max(self.kept, 1)
        most = end
        for kept in {kept for use in self.uses.values() for kept in (use.first, use.last)}:
            done = sum(use.values for use in self.uses.values() if use.first >= kept)
            begun = sum(use.values for use in self.uses.values() if use.last >= kept > use.first)
            # The second part of a gradient stands beside the first until they are added.
            added = max(
                (u.values for u in self.uses.values() if u.last > u.first == kept), default=0
            )
            waiting = (begun + added) * of_gradients.whole
            gradients = waiting + done * of_gradients.kept + of_gradients.bucket * bool(done)
            gradients += of_gradients.copied * min(of_gradients.together, done)
            most = max(most, int(kept * share + gradients))
        return most + 2 * self.largest


def rehearse(student: Towers, batch: Batch, kind: Kind) -> Rehearsal:
    """A forward of its rows of the batch. student: its weights are not looked at.

    Hugging Face's text towers look into their masks: they run on the CPU, as a CPU runs them.
    """
    found = Rehearsal()
    text, num_pictures = (
        batch.tokens[batch.seen_by(STUDENT_TEXT)],
        len(batch.seen_by(STUDENT_IMAGE)),
    )
    # As `Showing` does.
    if student.text is not None and not len(text):
        text = student.blank_caption()
    if student.image is not None:
        num_pictures = max(1, num_pictures)
    pad_id = student.text_forward.keywords["pad_id"]
    groups = [(torch.arange(len(text)), text.shape[1])]
    captions: Any = text
    if kind.device == "cuda" and len(text) and takes_packed(student.text, pad_id):
        captions = pack_if_shorter(text, student.text, pad_id)
    if kind.device == "cpu" and len(text) and not kind.is_shared_out:
        groups = groups_of(text, pad_id)
    with _nothing_computed(student, kind) as model:
        _note_parts(model, found)
        parameters = [parameter.untyped_storage() for parameter in model.parameters()]
        storages = {storage._cdata: storage for storage in parameters}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in storages:
                storages[storage._cdata] = storage  # held, so that no other takes its place
                found.kept += storage.nbytes()
                found.largest = max(found.largest, storage.nbytes())
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            if model.text_forward.func is short_text:
                # It looks for lengths in the tokens, in which nothing stands.
                model.text_forward = partial(_in_groups, groups=groups)
            device = model.logit_scale.device
            if isinstance(captions, Packed):
                captions = Packed(*(torch.empty_like(part, device=device) for part in captions))
            elif not isinstance(model.text, HFTextEncoder):
                captions = torch.empty(text.shape, dtype=torch.int64, device=device)
            pixels = torch.empty(
                num_pictures, 3, *model.prepare.size, dtype=torch.uint8, device=device
            )
            model(captions if len(text) else None, pixels if num_pictures else None)
    return found


def _in_groups(tower: Any, tokens: Tensor, groups: list[tuple[Tensor, int]]) -> Tensor:
    """As `by_length` does."""
    parts = [cut_text(tower, tokens[rows, :length]) for rows, length in groups]
    return torch.cat(parts)[torch.cat([rows for rows, _ in groups]).argsort()]


def _note_parts(model: Towers, found: Rehearsal) -> None:
    """Notes when parameters are used, and where blocks begin and end."""
    began: list[tuple[int, int]] = []
    called: set[nn.Module] = set()
    names = {parameter: name for name, parameter in model.named_parameters()}

    def uses(module: nn.Module, given: tuple) -> None:
        # Of its parts as well: some are used without a call of their own.
        for parameter in module.parameters():
            if parameter.requires_grad:
                # A module that is called again uses its parts again, in the order of its calls.
                earlier = found.uses.get(names[parameter])
                first = earlier.first if earlier and module in called else found.kept
                found.uses[names[parameter]] = Use(parameter.numel(), first, found.kept)
        called.add(module)

    def enters(module: nn.Module, given: tuple) -> None:
        began.append((found.kept, given[0].untyped_storage().nbytes() if given else 0))

    def leaves(module: nn.Module, given: tuple, made: Any) -> None:
        kept, entered = began.pop()
        if not began:  # a block within another is part of it
            found.blocks.append((found.kept - kept, entered))

    blocks = set(innermost_blocks_of(model))
    for module in model.modules():
        module.register_forward_pre_hook(uses)
        if module in blocks:
            module.register_forward_pre_hook(enters)
            module.register_forward_hook(leaves)


@contextmanager
def _nothing_computed(student: Towers, kind: Kind) -> Iterator[Towers]:
    """The student without weights, on a device that need not be there."""
    if isinstance(student.text, HFTextEncoder):
        with _autocast("cpu", kind.autocast):
            model = weightless(student, "cpu", kind.weights)
            lean(model)
            yield model
        return
    fused = _FusedAttention() if kind.device == "cuda" else nullcontext()
    with FakeTensorMode(allow_non_fake_inputs=True), _autocast(kind.device, kind.autocast), fused:
        model = weightless(student, kind.device, kind.weights)
        lean(model)
        yield model


@contextmanager
def _autocast(device: str, dtype: torch.dtype | None) -> Iterator[None]:
    """torch's own refuses a device that is not there."""
    if dtype is None:
        yield
        return
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


class _FusedAttention(TorchFunctionMode):
    """GPUs keep no attention weights: torch chooses among their kernels only where there is one."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            mask = (kwargs or {}).get("attn_mask")
            return _Fused.apply(query, key, value, mask)
        return func(*args, **(kwargs or {}))


class _Fused(torch.autograd.Function):
    """What flash and memory-efficient attention keep: their inputs, the output, a sum a query."""

    @staticmethod
    def forward(ctx, query, key, value, mask):
        output = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        masks = [] if mask is None else [mask.to(query.dtype)]
        ctx.save_for_backward(query, key, value, output, sums, *masks)
        return output
