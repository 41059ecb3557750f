"""open_clip models: load, take their towers apart, freeze, run, embed."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import open_clip
import torch
from open_clip.transformer import Transformer
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.api import Tower
from trainer.configuration.sections import ModelConfig
from trainer.models.packing import Packed, packed_text
from trainer.models.preprocess import Prepare, Tokenizer
from trainer.models.text_towers import first_output, text_forward_of
from trainer.models.weights import check_size, first_line, load_weights
from trainer.models.zoo import (
    architecture_of,
    name_of,
    preprocessing_beside,
    warn_of_activation,
    warn_of_activation_beside,
    weights_of,
    without_false_alarms,
)
from trainer.strategies.preparing import innermost_blocks_of, spread_out

MAX_LOGIT_SCALE = 100.0


@dataclass(frozen=True)
class Clip:
    """A loaded model with its tokenizer and its way of preparing pictures, on the CPU.

    The text tower always stands apart as `model.text`, whatever the architecture's own layout.
    """

    model: nn.Module
    tokenize: Tokenizer
    prepare: Prepare
    architecture: dict  # open_clip's model_cfg

    @property
    def has_custom_text(self) -> bool:
        """Whether the architecture itself keeps its text tower apart."""
        text = self.architecture["text_cfg"]
        return bool(self.architecture.get("custom_text")) or "hf_model_name" in text


def load(config: ModelConfig, weightless: bool = False) -> Clip:
    """Any open_clip architecture: by name with a tag or file, `local-dir:` or `hf-hub:`.

    weightless: shapes alone, on the meta device where the architecture lets itself be made there;
    of a file the shapes are looked at, what a tag names is not fetched.

    Raises ValueError or FileNotFoundError, one line: what was wanted, found, and is possible.
    """
    name = name_of(config)
    architecture = architecture_of(name)
    tag, path = weights_of(config, name)
    if tag:
        warn_of_activation(name, tag)
    if path:
        warn_of_activation_beside(name, architecture, path)
    # timm and transformers compute as they build.
    is_foreign = any(
        "timm_" in key or "hf_" in key for part in _parts(architecture) for key in part
    )
    device = torch.device("meta" if weightless and not is_foreign else "cpu")
    with without_false_alarms():
        try:
            # Not even asked whether a file of the model's folder may run.
            is_foreign_text = architecture["text_cfg"].get("hf_tokenizer_name")
            own = {"trust_remote_code": False} if is_foreign_text else {}
            tokenize = Tokenizer(open_clip.get_tokenizer(name, **own))
            with device:
                model: Any = open_clip.create_model(
                    name,
                    pretrained=None if weightless else tag,
                    load_weights=tag is not None and not weightless,
                    require_pretrained=tag is not None and not weightless,
                    device=device,
                    pretrained_text=False,  # a Hugging Face tower's own: ours come with the whole
                    force_custom_text=True,
                    force_preprocess_cfg=preprocessing_beside(name, path) if path else None,
                )
        except Exception as error:  # a wrong config, a tower or tokenizer not to be had
            raise ValueError(
                f"model.name {name}: open_clip cannot make it: {first_line(error)[:300]}"
            ) from error
    if path:
        (check_size if weightless else load_weights)(model, path, name)
    return Clip(
        model.requires_grad_(False).eval(),
        tokenize,
        Prepare.of(model.visual.preprocess_cfg),
        architecture,
    )


def _parts(architecture: dict) -> list[dict]:
    return [part for part in architecture.values() if isinstance(part, dict)]


class Towers(nn.Module):
    """The towers that are run together: one forward a step, the only way gradients synchronise."""

    def __init__(self, clip: Clip, towers: frozenset[Tower]):
        super().__init__()
        model: Any = clip.model
        self.text: Any = model.text if Tower.TEXT in towers else None
        self.image: Any = model.visual if Tower.IMAGE in towers else None
        # One-dimensional: DeepSpeed refuses parameters without a dimension.
        self.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1).clone())
        self.prepare = clip.prepare
        self.text_forward = partial(
            text_forward_of(model.text, clip.tokenize.pad_id),
            pad_id=clip.tokenize.pad_id,
            full_length=clip.tokenize.context_length,
        )

    def forward(
        self, captions: Tensor | Packed | None, pixels: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """captions (n, l) int64 or packed, pixels (m, 3, H, W) uint8 -> (n, d), (m, d), logit
        scale."""
        with fastest_attention(_device_of(captions, pixels)):
            text = image = None
            if isinstance(captions, Packed):
                text = packed_text(self.text, captions)
            elif captions is not None:
                text = self.text_forward(self.text, captions)
            if pixels is not None:
                dtype = next(self.image.parameters()).dtype  # a replica may be bf16
                image = first_output(self.image(self.prepare.scale(pixels).to(dtype)))
        # At most that, as open_clip has it, but with the gradient of what it is: a clamp has none,
        # and what has learnt up to there would stay.
        scale = self.logit_scale.exp().squeeze(0)
        return text, image, scale + (scale.clamp(max=MAX_LOGIT_SCALE) - scale).detach()

    def blank_caption(self) -> Tensor:
        """(1, 1) int64: one token that is no padding, for of that alone some towers make NaN."""
        return torch.full((1, 1), int(self.text_forward.keywords["pad_id"] == 0))

    def blank_picture(self, device: torch.device) -> Tensor:
        """(1, 3, H, W) uint8."""
        return torch.zeros(1, 3, *self.prepare.size, dtype=torch.uint8, device=device)

    def train(self, mode: bool = True) -> Towers:
        """Always as in evaluation: BatchNorm's statistics stay the original's, and nothing drops
        out, since both would differ with the number of ranks, and from the teacher at once.
        """
        return super().train(False)


def _device_of(captions: Tensor | Packed | None, pixels: Tensor | None) -> torch.device:
    tokens = captions.tokens if isinstance(captions, Packed) else captions
    given = tokens if tokens is not None else pixels
    return torch.device("cpu") if given is None else given.device


def fastest_attention(device: torch.device) -> AbstractContextManager:
    """On CPUs the fused kernel's backward is slow: 222 against 294 ms a step in fp32, 133 against
    341 in bf16 (the demo's image tower, 384 pictures, two cores)."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def recompute_activations(towers: Towers, compiled: bool = False) -> None:
    """Of each block that repeats keep what enters it; its own forward runs again in the backward.

    In place. Parameters' names get a part more, see `strategies`. compiled: the blocks are to be.
    """
    blocks = set(innermost_blocks_of(towers))

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        # The second is for the second time, when `Towers.forward` is over.
        return nullcontext(), fastest_attention(towers.logit_scale.device)

    # A compiler plans both times when it sees the first, and takes no context.
    own: dict[str, Any] = {} if compiled else {"context_fn": contexts}
    wrap = partial(checkpoint_wrapper, preserve_rng_state=False, **own)
    apply_activation_checkpointing(towers, wrap, blocks.__contains__)


def frozen(towers: Towers) -> Towers:
    return towers.requires_grad_(False).eval()


def replica(
    towers: Towers,
    device: torch.device,
    dtype: torch.dtype,
    placed: str = "whole",
    for_autocast: bool = False,
) -> Towers:
    """Frozen, there and in that precision; the loaded model's own weights stay as they are.

    placed: see `MemoryConfig.teacher`. for_autocast: beside a student of float32 weights that
    computes by autocast, as this is to be too: rounded is what that rounds, and no more. It would
    otherwise differ from a student that has learnt nothing, as one in parts does.
    """
    if placed != "whole":
        return spread_out(frozen(copy.deepcopy(towers).to(dtype)), device, placed == "offloaded")
    own = next(towers.parameters())
    if own.device.type == device.type and own.dtype == dtype:
        return frozen(towers)  # on a CPU: no second copy
    copied = copy.deepcopy(towers)
    if not for_autocast:
        return frozen(copied.to(device, dtype))
    for parameter in rounded_by_autocast(copied):
        parameter.data = parameter.data.to(dtype)
    for module in copied.modules():  # open_clip would have tokens in its linear maps' precision
        if isinstance(module, Transformer):
            module.get_cast_dtype = _float32
    return frozen(copied.to(device))


def _float32() -> torch.dtype:
    return torch.float32


def rounded_by_autocast(model: nn.Module) -> list[nn.Parameter]:
    """Weights of linear maps and convolutions; not tables, norms and what is added to tokens."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
    return [
        parameter
        for module in model.modules()
        if isinstance(module, kinds)
        for parameter in module.parameters(recurse=False)
    ]


def student_of(
    clip: Clip, towers: frozenset[Tower], config: ModelConfig, temperature: bool
) -> Towers:
    """A copy to train. What no objective trains stays frozen: DDP stops on a parameter unused.

    Raises ValueError where `freeze` matches nothing, or leaves nothing.
    """
    original = Towers(clip, towers)
    names = [name for name, _ in original.named_parameters()]
    for pattern in config.freeze:
        if not any(fnmatchcase(name, pattern) for name in names):
            close = difflib.get_close_matches(pattern, names)
            raise ValueError(
                f"model.freeze: {pattern} matches no parameter that trains; "
                f"names are like {', '.join(close or _spread(names))}"
            )
    student = copy.deepcopy(original).requires_grad_(True)  # the original is frozen
    student.logit_scale.requires_grad_(temperature)
    if config.freeze_norms:
        for module in student.modules():
            if "Norm" in type(module).__name__:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(False)
    for name, parameter in student.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in config.freeze):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise ValueError(
            f"model.freeze: nothing is left to train of {' and '.join(sorted(towers))}; "
            "remove a pattern"
        )
    return student.train()


def _spread(names: Sequence[str]) -> Sequence[str]:
    """A few from all over."""
    return names[:: max(1, len(names) // 4)]
