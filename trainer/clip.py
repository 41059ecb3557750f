"""open_clip towers: load, freeze, run, embed."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip.factory import load_checkpoint
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.transforms.v2 import functional as tvf
from torchvision.transforms.v2 import InterpolationMode

from trainer.api import BadSample, Tower, decode_picture
from trainer.config import ModelConfig

log = logging.getLogger(__name__)


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
        return bool(self.architecture.get("custom_text") or text.get("hf_model_name"))


def architecture_of(name: str) -> dict:
    """open_clip's model_cfg of an architecture, `local-dir:` or `hf-hub:` name."""
    schema, identifier = open_clip.factory.parse_model_name(name)
    if schema == "local-dir":
        return json.loads((Path(identifier) / "open_clip_config.json").read_text())["model_cfg"]
    if schema == "hf-hub":
        return open_clip.factory._get_hf_config(identifier)["model_cfg"]
    return open_clip.get_model_config(identifier.replace("/", "-"))


def load(config: ModelConfig) -> Clip:
    """Any open_clip architecture: by name with a tag or file, `local-dir:` or `hf-hub:`.

    Raises ValueError or FileNotFoundError saying what was found instead.
    """
    pretrained = config.pretrained
    own_weights = ":" in config.name and pretrained is None and not config.random_weights
    if pretrained and Path(pretrained).is_dir():
        raise ValueError(
            f"model.pretrained {pretrained} is a folder; write model.name: local-dir:{pretrained}"
        )
    is_file = pretrained is not None and Path(pretrained).is_file()
    try:
        model = open_clip.create_model(
            config.name,
            pretrained=None if is_file else pretrained,
            load_weights=own_weights or (pretrained is not None and not is_file),
            require_pretrained=own_weights or (pretrained is not None and not is_file),
            force_custom_text=True,
        )
        if is_file:
            load_checkpoint(model, pretrained)
    except RuntimeError as error:
        raise ValueError(
            f"model {config.name} with weights {pretrained or 'of its own'}: "
            f"{_first_lines(error)}"
        ) from error
    if not own_weights and pretrained is None and not config.random_weights:
        raise ValueError(
            f"model.pretrained is missing: name a tag of {config.name} "
            f"({', '.join(open_clip.list_pretrained_tags_by_model(config.name)) or 'none known'}) "
            "or a checkpoint file, or say model.random_weights: true"
        )
    warn_of_activation(config.name, pretrained)
    return Clip(
        model.requires_grad_(False).eval(),
        Tokenizer(open_clip.get_tokenizer(config.name)),
        Prepare(**_prepare_options(model.visual.preprocess_cfg)),
        architecture_of(config.name),
    )


def _first_lines(error: Exception, count: int = 4) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:count])[:500]


def warn_of_activation(name: str, pretrained: str | None) -> None:
    """Weights trained with QuickGELU in a GELU architecture lose points silently, and the reverse."""
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    config = open_clip.get_model_config(name) or {}
    if not tag or "quick_gelu" not in tag:
        return
    if bool(tag["quick_gelu"]) != bool(config.get("quick_gelu", False)):
        other = name.removesuffix("-quickgelu") if config.get("quick_gelu") else f"{name}-quickgelu"
        log.warning(
            "%s's activation is not the one that the weights '%s' were trained with; use %s",
            name, pretrained, other,
        )  # fmt: skip


def _prepare_options(config: dict) -> dict:
    size = config["size"]
    return {
        "size": (size, size) if isinstance(size, int) else tuple(size),
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "interpolation": config["interpolation"],
        "resize_mode": config["resize_mode"],
        "fill_color": config["fill_color"],
    }


class Tokenizer:
    """An open_clip tokenizer that cuts the padding off; picklable, remembers captions."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.context_length = tokenizer.context_length
        self.pad_id = int(tokenizer([""])[0, -1])
        self._forget()

    def _forget(self) -> None:
        # The attack asks for the same captions at every evaluation.
        self._ids = lru_cache(maxsize=100_000)(self._ids_of)

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "_ids"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()

    def _ids_of(self, text: str) -> np.ndarray:
        ids = self._tokenizer([text])[0].numpy().astype(np.int32)
        (used,) = np.nonzero(ids != self.pad_id)
        return ids[: used[-1] + 1 if len(used) else 1]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Captions to (n, l) int64, l that of the longest."""
        rows = [self._ids(text) for text in texts]
        length = max(map(len, rows), default=1)
        tokens = np.full((len(rows), length), self.pad_id, dtype=np.int64)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return torch.from_numpy(tokens)


@dataclass(frozen=True)
class Prepare:
    """open_clip's preprocessing in two halves: resize and crop in a worker, scale on the device."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    resize_mode: str
    fill_color: int

    def resize(self, picture: Tensor) -> Tensor:
        """uint8 (3, h, w) of any size to uint8 (3, H, W) of the model's."""
        if tuple(picture.shape[-2:]) == self.size:
            return picture
        height, width = self.size
        if self.resize_mode == "squash":
            return self._resize(picture, height, width)
        pick = max if self.resize_mode == "shortest" else min
        scale = pick(height / picture.shape[-2], width / picture.shape[-1])
        scaled = [max(1, round(side * scale)) for side in picture.shape[-2:]]
        picture = self._resize(picture, *scaled)
        if self.resize_mode == "longest":
            return _pad_to(picture, height, width, self.fill_color)
        return tvf.center_crop(picture, [height, width])

    def _resize(self, picture: Tensor, height: int, width: int) -> Tensor:
        mode = InterpolationMode.BICUBIC
        if self.interpolation == "bilinear":
            mode = InterpolationMode.BILINEAR
        return tvf.resize(picture, [height, width], interpolation=mode, antialias=True)

    def scale(self, pixels: Tensor) -> Tensor:
        """uint8 (n, 3, H, W) to the float input of the tower, on whatever device they are."""
        mean = torch.tensor(self.mean, device=pixels.device)[:, None, None] * 255
        std = torch.tensor(self.std, device=pixels.device)[:, None, None] * 255
        return (pixels.float() - mean) / std


def _pad_to(picture: Tensor, height: int, width: int, fill: int) -> Tensor:
    top, left = (height - picture.shape[-2]) // 2, (width - picture.shape[-1]) // 2
    bottom, right = height - picture.shape[-2] - top, width - picture.shape[-1] - left
    return tvf.pad(picture, [left, top, right, bottom], fill=fill)


class Towers(nn.Module):
    """The towers that are run together: one forward a step, the only way gradients synchronise."""

    def __init__(self, clip: Clip, towers: frozenset[Tower]):
        super().__init__()
        self.text = clip.model.text if Tower.TEXT in towers else None
        self.image = clip.model.visual if Tower.IMAGE in towers else None
        # One-dimensional: DeepSpeed refuses parameters without a dimension.
        self.logit_scale = nn.Parameter(clip.model.logit_scale.detach().reshape(1).clone())
        self.prepare = clip.prepare
        self.text_forward = None
        if self.text is not None:
            self.text_forward = partial(
                short_text if takes_short_text(self.text) else full_length_text,
                pad_id=clip.tokenize.pad_id,
            )

    def forward(
        self, tokens: Tensor | None, pixels: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """tokens (n, l) int64, pixels (m, 3, H, W) uint8 -> (n, d), (m, d), logit scale."""
        with fastest_attention(self.logit_scale.device):
            text = None if tokens is None else self.text_forward(self.text, tokens)
            image = None if pixels is None else _first(self.image(self.prepare.scale(pixels)))
        return text, image, self.logit_scale.exp().clamp(max=100).squeeze(0)

    def train(self, mode: bool = True) -> Towers:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()  # its statistics stay the original's: ranks and batches would differ
        return self


def fastest_attention(device: torch.device) -> AbstractContextManager:
    """On CPUs the fused kernel's backward is slow: 222 against 294 ms a step in fp32, 133 against
    341 in bf16 (the demo's image tower, 384 pictures, two cores)."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _first(output: Tensor | tuple) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]  # some towers give tokens too


def takes_short_text(tower: nn.Module) -> bool:
    """Whether cutting the padding off changes nothing: causal attention, the end token read."""
    return (
        isinstance(tower, TextTransformer)
        and tower.attn_mask is not None
        and tower.cls_emb is None
        and not tower.use_pad_mask
        and tower.pool_type in ("argmax", "eos", "first")
    )


def short_text(tower: TextTransformer, tokens: Tensor, pad_id: int) -> Tensor:
    """`tower.forward` at the length of the tokens, which open_clip's own refuses. Returns (n, d)."""
    length = tokens.shape[1]
    x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
    pooled = open_clip.transformer.text_global_pool(
        x, tokens, pool_type=tower.pool_type, eos_token_id=tower.eos_id
    )
    if tower.text_projection is None:
        return pooled
    if isinstance(tower.text_projection, nn.Linear):
        return tower.text_projection(pooled)
    return pooled @ tower.text_projection


def full_length_text(tower: nn.Module, tokens: Tensor, pad_id: int) -> Tensor:
    """Any other text tower, at the full length it was made for. Returns (n, d)."""
    missing = tower.context_length - tokens.shape[1]
    return _first(tower(F.pad(tokens, (0, missing), value=pad_id)))


def frozen(towers: Towers) -> Towers:
    return towers.requires_grad_(False).eval()


def student_of(clip: Clip, towers: frozenset[Tower], config: ModelConfig, temperature: bool) -> Towers:
    """A copy to train. What no objective trains stays frozen: DDP stops on a parameter unused."""
    student = copy.deepcopy(Towers(clip, towers)).requires_grad_(True)  # its original is frozen
    student.logit_scale.requires_grad_(temperature)
    if config.freeze_norms:
        for module in student.modules():
            if "Norm" in type(module).__name__:
                module.requires_grad_(False)
    unused = list(config.freeze)
    for name, parameter in student.named_parameters():
        for pattern in config.freeze:
            if fnmatch(name, pattern):
                parameter.requires_grad_(False)
                unused = [other for other in unused if other != pattern]
    if unused:
        raise ValueError(
            f"model.freeze: {unused[0]} matches no parameter; the names are like "
            f"{', '.join([name for name, _ in student.named_parameters()][:4])}"
        )
    return student.train()


class ClipEncoder:
    """`Encoder` over the towers given; ranks take every other row and put the rows together."""

    def __init__(self, text: Towers, image: Towers, clip: Clip, device: torch.device, batch: int = 256):
        self._text, self._image, self._clip = text, image, clip
        self._device, self._batch = device, batch

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Captions to (n, d). Sorted by length first: a batch is as long as its longest."""
        return self._embed(texts, self._embed_texts)

    def encode_image(self, pictures: Sequence[bytes]) -> Tensor:
        """Encoded pictures to (n, d); a picture that does not decode gives a row of NaN."""
        return self._embed(pictures, self._embed_pictures)

    def _embed(self, items: Sequence, embed) -> Tensor:
        rank, ranks = _rank()
        mine = range(rank, len(items), ranks)
        with torch.inference_mode():
            rows = [
                embed([items[i] for i in mine[start : start + self._batch]])
                for start in range(0, len(mine), self._batch)
            ]
        rows = torch.cat(rows) if rows else torch.zeros(0, 0, device=self._device)
        return rows if ranks == 1 else _interleave(rows, len(items), ranks)

    def _embed_texts(self, texts: list[str]) -> Tensor:
        tokens = self._clip.tokenize(texts).to(self._device)
        return self._text(tokens, None)[0].float()

    def _embed_pictures(self, pictures: list[bytes]) -> Tensor:
        pixels, undecodable = [], []
        for row, data in enumerate(pictures):
            try:
                pixels.append(self._clip.prepare.resize(decode_picture(data)))
            except BadSample:
                undecodable.append(row)
                pixels.append(torch.zeros(3, *self._clip.prepare.size, dtype=torch.uint8))
        embedded = self._image(None, torch.stack(pixels).to(self._device))[1].float()
        embedded[undecodable] = float("nan")
        return embedded


def _rank() -> tuple[int, int]:
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _interleave(rows: Tensor, total: int, ranks: int) -> Tensor:
    """Every rank's rows, each holding every `ranks`-th, in the order of the whole."""
    width = torch.tensor(rows.shape[1], device=rows.device)
    dist.all_reduce(width, dist.ReduceOp.MAX)  # a rank without a row does not know d
    block = -(-total // ranks)
    padded = torch.zeros(block, int(width), device=rows.device)
    if len(rows):
        padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(gathered, padded)
    return torch.stack(gathered, dim=1).flatten(0, 1)[:total]
