"""One tiny model of each kind that open_clip makes, as its own code makes and saves it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, MT5Config, PreTrainedTokenizerFast

from trainer.configuration.sections import ModelConfig
from trainer.models.clip import Clip, fastest_attention, load

TEXTS = ["a red hat", "a photo of a person at a gala in the old town", "a person"]
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
SIGMOID = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
POOLER = {"attentional_pool": True, "output_tokens": True, "attn_pooler_heads": 2}
DECODER = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}

KINDS: dict[str, dict] = {
    "plain": {},
    "quick": {"quick_gelu": True},
    "custom": {"custom_text": True},
    "resnet": {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}},
    "sigmoid": {  # SigLIP's, by another name: to open_clip that would mean a tokenizer of the hub's
        "custom_text": True,
        "init_logit_bias": -10.0,
        "text_cfg": TEXT | SIGMOID,
    },
    "coca": {
        "custom_text": True,
        "vision_cfg": VISION | POOLER,
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": DECODER | {"attn_pooler_heads": 2},
    },
    "bert": {"text_cfg": {"hf_model_name": "bert", "context_length": 24}},
    "mt5": {"text_cfg": {"hf_model_name": "mt5", "context_length": 24}},
}
PACKED = {"plain", "quick", "custom", "resnet"}  # causal, and blocks of torch's attention
CUT = {*PACKED, "bert", "mt5"}  # whose captions need no padding


@dataclass
class Original:
    """A model that open_clip made and saved. name: as it is registered with open_clip."""

    name: str
    file: Path
    model: Any

    @cached_property
    def clip(self) -> Clip:
        return load(ModelConfig(name=self.name, pretrained=str(self.file)))


def make(kind: str, folder: Path) -> Original:
    config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT} | KINDS[kind]
    if hf_name := config["text_cfg"].get("hf_model_name"):
        tower = save_text_tower(hf_name, folder / hf_name)
        own = {"hf_model_name": str(tower), "hf_tokenizer_name": str(tower)}
        config["text_cfg"] = config["text_cfg"] | own
    name = f"tiny-{kind}"
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model: Any = open_clip.create_model(name, pretrained_text=False).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():  # norms and biases too, and BatchNorm's statistics
                tensor.nan_to_num_(0, 0, 0).clamp_(-10, 10)  # open_clip leaves one of CoCa's unset
                tensor.add_(torch.rand_like(tensor) / 10)
    file = folder / f"{name}.pt"
    torch.save(model.state_dict(), file)
    return Original(name, file, model)


def save_text_tower(kind: str, folder: Path) -> Path:
    """A Hugging Face config and tokenizer; from the words of TEXTS."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = special + sorted(set(" ".join(TEXTS).split()))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    bert = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    mt5 = MT5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    {"bert": bert, "mt5": mt5}[kind].save_pretrained(folder)
    return folder


def pixels(count: int = 3, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.manual_seed(1)).byte()


def embed(model: Any, clip: Clip, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """What open_clip's model makes of TEXTS and the pictures, with our choice of kernel."""
    options = {"normalize": False}
    tokens = open_clip_tokens(clip)
    with torch.no_grad(), fastest_attention(pictures.device):
        return (
            model.encode_text(tokens, **options),
            model.encode_image(clip.prepare.scale(pictures), **options),
        )


def open_clip_tokens(clip: Clip) -> Tensor:
    """TEXTS at the full length."""
    return clip.tokenize._tokenizer(TEXTS)
