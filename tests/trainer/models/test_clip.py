from __future__ import annotations

import copy
import io
import json
import logging
import math
import pickle
import string
import warnings
import zipfile
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.conftest import TINY
from tests.trainer.architectures import (
    CUT,
    KINDS,
    TEXTS,
    VISION,
    embed,
    open_clip_tokens,
    pixels,
)
from trainer.api import Tower, decode_picture
from trainer.configuration.sections import ModelConfig
from trainer.models import clip as clips
from trainer.models.blocks import lean
from trainer.models.clip import Towers, student_of
from trainer.models.export import export
from trainer.models.preprocess import Prepare, Tokenizer
from trainer.models.text_towers import MIN_GROUP, takes_short_text
from trainer.models.zoo import preprocessing_beside, warn_of_activation
from trainer.strategies.preparing import spread_out

BOTH = frozenset(Tower)
MANY = [*TEXTS, "hat " * 12, "a"]
CPU = torch.device("cpu")


def refusal(kind: type[Exception] = ValueError, **options) -> str:
    """What the user is told of a model that cannot be loaded: one line."""
    with pytest.raises(kind) as raised:
        clips.load(ModelConfig(**options))
    message = str(raised.value)
    assert "\n" not in message and "Traceback" not in message
    return message


# Towers


@pytest.mark.parametrize("kind", KINDS)
def test_towers_embed_as_open_clips_own_model(originals, kind):
    original = originals[kind]
    clip = original.clip
    tokens = clip.tokenize(TEXTS)
    assert tokens.shape[1] < clip.tokenize.context_length
    text, image, scale = clips.frozen(Towers(clip, BOTH))(tokens, pixels())
    # Frozen as well: torch then has another way through attention, with other rounding.
    model = copy.deepcopy(original.model).requires_grad_(False)
    wanted_text, wanted_image = embed(model, clip, pixels())
    assert torch.equal(image, wanted_image)
    if kind in CUT:
        torch.testing.assert_close(text, wanted_text, rtol=0, atol=1e-5)
    else:
        assert torch.equal(text, wanted_text)
    assert scale == original.model.logit_scale.exp().clamp(max=100)


@pytest.mark.parametrize("kind", KINDS)
def test_beside_autocast_a_student_that_has_learnt_nothing_embeds_as_its_teacher(originals, kind):
    """To the last bit: what rounding leaves Adam would make whole steps of."""
    clip = copy.deepcopy(originals[kind].clip)
    lean(clip.model)
    student = student_of(clip, BOTH, ModelConfig(name="", pretrained=None), temperature=False)
    teacher = clips.replica(Towers(clip, BOTH), CPU, torch.bfloat16, for_autocast=True)
    with torch.autocast("cpu", torch.bfloat16):
        learnt, taught = (one(clip.tokenize(TEXTS), pixels()) for one in (student, teacher))
    for own, wanted in zip(learnt, taught, strict=True):
        assert torch.equal(own.float(), wanted.float())


@pytest.mark.parametrize("kind", KINDS)
def test_text_runs_at_the_length_of_its_captions_only_where_padding_cannot_matter(originals, kind):
    clip = originals[kind].clip
    lengths = []
    tower = clip.model.text
    block = tower.transformer
    hook = block.register_forward_hook(
        lambda module, args, kwargs, out: lengths.append(
            (kwargs.get("input_ids") if "input_ids" in kwargs else args[0]).shape[1]
        ),
        with_kwargs=True,
    )
    Towers(clip, BOTH)(clip.tokenize(TEXTS), None)
    hook.remove()
    full = clip.tokenize.context_length + (kind == "coca")  # it adds a token for the class
    assert lengths == [clip.tokenize(TEXTS).shape[1] if kind in CUT else full]


@pytest.mark.parametrize(
    ("change", "pad_id"),
    [
        ({"pool_type": "argmax"}, 1),
        ({"pool_type": "eos", "eos_id": 0}, 0),
        ({"pool_type": "last"}, 0),
    ],
)
def test_captions_keep_their_padding_where_a_pad_could_be_read(plain, change, pad_id):
    tower = copy.deepcopy(plain.clip.model.text)
    assert takes_short_text(tower, 0)
    vars(tower).update(change)
    assert not takes_short_text(tower, pad_id)


@pytest.mark.parametrize(("is_shared_out", "calls"), [(False, 2), (True, 1)])
def test_a_tower_in_parts_runs_once_however_many_captions_there_are(plain, is_shared_out, calls):
    """A process with fewer would not take part in the second call, which waits for it for ever."""
    towers = copy.deepcopy(Towers(plain.clip, frozenset({Tower.TEXT})))
    tokens = plain.clip.tokenize([f"a hat {i} {'on ' * (i % 5)}" for i in range(2 * MIN_GROUP)])
    wanted = towers(tokens, None)[0]
    seen = []
    towers.text.transformer.register_forward_hook(lambda *args: seen.append(1))
    try:
        if is_shared_out:
            towers = spread_out(clips.frozen(towers), CPU, offload=False)
        torch.testing.assert_close(towers(tokens, None)[0], wanted, rtol=0, atol=1e-5)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    assert len(seen) == calls


def test_only_the_towers_asked_for_are_held(plain):
    towers = Towers(plain.clip, frozenset({Tower.IMAGE}))
    assert towers.text is None
    assert {name.split(".")[0] for name, _ in towers.named_parameters()} == {"image", "logit_scale"}
    text, image, _ = towers(None, pixels())
    assert text is None and image.shape == (3, 16)


def test_towers_in_bfloat16_embed_about_the_same(plain):
    exact = Towers(plain.clip, BOTH)
    rounded = copy.deepcopy(exact).bfloat16()
    tokens = plain.clip.tokenize(TEXTS)
    for one, other in zip(exact(tokens, pixels())[:2], rounded(tokens, pixels())[:2], strict=True):
        assert other.dtype == torch.bfloat16
        assert torch.cosine_similarity(one, other.float()).min() > 0.99


def test_the_temperature_is_at_most_a_hundred(plain):
    towers = copy.deepcopy(Towers(plain.clip, BOTH))
    nn.init.constant_(towers.logit_scale, 7.0)
    assert towers(None, None)[2] == 100


def test_a_temperature_of_a_hundred_still_learns_and_is_none_above_when_it_is_written(
    plain, tmp_path
):
    towers = copy.deepcopy(Towers(plain.clip, BOTH))
    nn.init.constant_(towers.logit_scale, math.log(100))
    towers(None, None)[2].backward()
    assert towers.logit_scale.grad == pytest.approx(100)
    nn.init.constant_(towers.logit_scale, 5.0)
    file = export(plain.clip, {"logit_scale": towers.logit_scale}, tmp_path / "m", torch.float32)
    assert load_file(file)["logit_scale"] == pytest.approx(math.log(100))


# Teacher and student


def test_the_teacher_gets_no_gradient_and_the_student_does(plain):
    teacher = clips.frozen(Towers(plain.clip, BOTH))
    student = student_of(plain.clip, BOTH, ModelConfig(name=plain.name), temperature=False)
    tokens = plain.clip.tokenize(TEXTS)
    taught, learnt = teacher(tokens, pixels()), student(tokens, pixels())
    (learnt[0] - taught[0].flip(0) + learnt[1] - taught[1].flip(0)).square().sum().backward()
    assert not any(one.requires_grad or one.grad is not None for one in teacher.parameters())
    assert student.logit_scale.grad is None
    assert all(
        one.grad is not None for name, one in student.named_parameters() if name != "logit_scale"
    )


def test_the_student_begins_as_the_teacher_even_in_training(originals):
    for original in originals.values():  # a Hugging Face tower has dropout
        student = student_of(original.clip, BOTH, ModelConfig(name=original.name), False).train()
        tokens = original.clip.tokenize(TEXTS)
        # Not frozen(): that is eval() as well.
        both = student.requires_grad_(False), clips.frozen(Towers(original.clip, BOTH))
        with torch.no_grad():  # with a gradient, kernels are others
            learnt, taught = (one(tokens, pixels()) for one in both)
        assert torch.equal(learnt[0], taught[0]) and torch.equal(learnt[1], taught[1])


def test_the_temperature_trains_only_if_asked(plain):
    student = student_of(plain.clip, BOTH, ModelConfig(name=plain.name), temperature=True)
    assert student.logit_scale.requires_grad and student.logit_scale.shape == (1,)


@pytest.mark.parametrize("kind", ["plain", "resnet", "bert", "mt5"])
def test_freeze_norms_freezes_all_norms_and_no_more(originals, kind):
    original = originals[kind]
    config = ModelConfig(name=original.name, freeze_norms=True)
    student = student_of(original.clip, BOTH, config, temperature=True)
    still = {name for name, one in student.named_parameters() if not one.requires_grad}
    norms = ("ln_", "bn", "LayerNorm", "layer_norm", "downsample.1")
    assert still == {
        name for name, _ in student.named_parameters() if any(n in name for n in norms)
    }
    assert still


def test_what_a_pattern_matches_stays(plain):
    config = ModelConfig(name=plain.name, freeze=["image.*", "text.token_*"])
    student = student_of(plain.clip, BOTH, config, temperature=True)
    still = {name for name, one in student.named_parameters() if not one.requires_grad}
    assert "text.token_embedding.weight" in still and "text.ln_final.weight" not in still
    assert {name for name, _ in student.named_parameters() if name.startswith("image")} < still


def test_a_pattern_that_matches_nothing_is_refused_with_names_that_are_there(plain, monkeypatch):
    monkeypatch.setattr(copy, "deepcopy", None)  # told before the model is copied
    with pytest.raises(ValueError, match="model.freeze: text.ln_finl.weight matches no") as raised:
        config = ModelConfig(name=plain.name, freeze=["image.*", "text.ln_finl.weight"])
        student_of(plain.clip, BOTH, config, temperature=False)
    assert "names are like text.ln_final.weight" in str(raised.value)


def test_a_student_with_nothing_to_train_is_refused(plain):
    with pytest.raises(ValueError, match="nothing is left to train of text; remove a pattern"):
        config = ModelConfig(name=plain.name, freeze=["*"])
        student_of(plain.clip, frozenset({Tower.TEXT}), config, temperature=False)


# Captions and pictures


@pytest.mark.parametrize("kind", ["plain", "bert"])
def test_tokens_filled_up_are_open_clips_own(originals, kind):
    clip = originals[kind].clip
    tokens = clip.tokenize(TEXTS)
    full = open_clip_tokens(clip)
    assert torch.equal(full[:, : tokens.shape[1]], tokens)
    assert (full[:, tokens.shape[1] :] == clip.tokenize.pad_id).all()


CLIPS = SimpleTokenizer(context_length=24)
OURS = Tokenizer(CLIPS)
PLAIN = st.text(string.ascii_letters + string.digits + string.punctuation + " ", max_size=200)
PIECES = st.sampled_from(
    [
        "it's",
        "Don'T",
        "<end_of_text>",
        "<START_OF_TEXT>",
        "&amp;",
        "! !",
        "  ",
        "\t",
        "\n",
        "ﬁ",
        "é",
        "İ",
    ]
)


@given(st.one_of(PLAIN, st.text(), st.lists(st.one_of(PIECES, PLAIN)).map("".join)))
@example("hat " * 100)
@example("")
def test_any_caption_gets_the_tokens_that_open_clip_gives_it(text):
    full, tokens = CLIPS([text]), OURS([text])
    assert torch.equal(full[:, : tokens.shape[1]], tokens)
    assert not full[:, tokens.shape[1] :].any()


@pytest.mark.parametrize("kind", ["plain", "bert"])
def test_a_tokenizer_goes_to_a_loader_worker(originals, kind):
    tokenize = originals[kind].clip.tokenize
    tokenize(TEXTS)
    assert torch.equal(pickle.loads(pickle.dumps(tokenize))(TEXTS), tokenize(TEXTS))


def test_a_caption_that_is_too_long_keeps_its_end_token(plain):
    tokens = plain.clip.tokenize(["hat " * 100])
    assert tokens.shape == (1, 24) and tokens[0, -1] == tokens.max()


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(64, 64), (48, 64)])
@pytest.mark.parametrize("shape", [(97, 133), (133, 97), (64, 301), (20, 31)])
def test_pictures_are_prepared_as_by_open_clip(mode, interpolation, size, shape):
    if mode == "shortest" and size != (64, 64) and interpolation == "bilinear":
        pytest.skip("open_clip is always bicubic here")
    config = PreprocessCfg(size=size, resize_mode=mode, interpolation=interpolation, fill_color=9)
    smooth = torch.rand(3, 5, 5, generator=torch.manual_seed(0)) * 255
    whole = nn.functional.interpolate(smooth[None], shape, mode="bilinear")[0].byte()
    wanted = image_transform_v2(config, is_train=False)(
        Image.fromarray(whole.permute(1, 2, 0).numpy())
    )
    prepare = Prepare.of(vars(config))
    found = prepare.scale(prepare.resize(whole))
    assert found.shape == wanted.shape
    assert (found - wanted).abs().mean() < 0.01  # of a standard deviation: roundings
    assert (found - wanted).abs().max() < 0.05


class Copies(TorchDispatchMode):
    """Notes what makes a tensor of the GPU's of one of the host's."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = [one for one in tree_leaves(args) if isinstance(one, torch.Tensor)]
        if any(one.device.type == "cpu" for one in given) and made.device.type == "cuda":
            self.found.append(str(func))
        return made


def test_pictures_are_scaled_without_a_copy_to_the_gpu():
    """The host would wait for what the GPU is at. As a rehearsal does it: none need be there."""
    prepare = Prepare.of(vars(PreprocessCfg()))
    with FakeTensorMode(), Copies() as copies:
        scaled = prepare.scale(torch.empty(2, 3, 8, 8, dtype=torch.uint8, device="cuda"))
    assert scaled.device.type == "cuda" and scaled.dtype == torch.float32
    assert not copies.found


def test_pictures_are_scaled_by_the_same_numbers_compiled_or_not():
    prepare = Prepare.of(vars(PreprocessCfg()))
    taken = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(own)[:, None, None] * 255 for own in (prepare.mean, prepare.std))
    wanted = (taken.float() - mean) / std
    assert torch.equal(prepare.scale(taken), wanted)
    assert torch.equal(torch.compile(prepare.scale, backend="eager", fullgraph=True)(taken), wanted)


def test_a_picture_of_one_row_does_not_fill_the_memory(plain):
    file = io.BytesIO()
    Image.new("RGB", (60_000, 1), (9, 200, 30)).save(file, "PNG")
    prepared = plain.clip.prepare.resize(decode_picture(file.getvalue()))  # 7 GB if it were whole
    assert prepared.shape == (3, 32, 32) and (prepared[1] == 200).all()


# Loading


def test_a_local_dir_a_file_and_a_name_with_a_slash_give_the_same_model(plain, tmp_path):
    save_file(plain.model.state_dict(), tmp_path / "open_clip_model.safetensors")
    config = {"model_cfg": plain.clip.architecture, "preprocess_cfg": {"mean": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    for options in (
        {"name": f"local-dir:{tmp_path}"},
        {"name": f"local-dir:{tmp_path}", "pretrained": str(plain.file)},
        {"name": "tiny/plain", "pretrained": str(tmp_path / "open_clip_model.safetensors")},
    ):
        clip = clips.load(ModelConfig(**options))
        found = Towers(clip, BOTH)(clip.tokenize(TEXTS), pixels())
        wanted = Towers(plain.clip, BOTH)(plain.clip.tokenize(TEXTS), pixels())
        assert torch.equal(found[0], wanted[0])
        # A file is prepared for as the config beside it says; another's says nothing.
        assert clip.prepare.mean == (0.5, 0.5, 0.5)
    assert plain.clip.prepare.mean == open_clip.OPENAI_DATASET_MEAN


def test_a_training_checkpoint_of_open_clip_is_read(plain, tmp_path):
    state = {f"module.{key}": value.half() for key, value in plain.model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 1.0}}, tmp_path / "epoch_3.pt")
    clip = clips.load(ModelConfig(name=plain.name, pretrained=str(tmp_path / "epoch_3.pt")))
    wanted = plain.model.visual.proj.half().float()
    assert torch.equal(clip.model.visual.proj, wanted)
    assert not any(one.requires_grad for one in clip.model.parameters()) and not clip.model.training


def test_a_siglip_file_is_prepared_for_as_its_known_weights_are(tmp_path):
    file = tmp_path / "weights.safetensors"
    assert preprocessing_beside("ViT-B-16-SigLIP", file)["resize_mode"] == "squash"
    assert preprocessing_beside("ViT-L-14", file) == {}  # of several means: who knows
    (tmp_path / "open_clip_config.json").write_text(
        '{"preprocess_cfg": {"mean": [0, 0, 0], "x": 1}}'
    )
    assert preprocessing_beside("ViT-L-14", file) == {"mean": [0, 0, 0]}


def test_positions_that_are_interpolated_are_told_of(plain, tmp_path, caplog):
    state = dict(plain.model.state_dict())
    state["visual.positional_embedding"] = torch.zeros(10, 32)
    save_file(state, tmp_path / "larger.safetensors")
    clips.load(ModelConfig(name=plain.name, pretrained=str(tmp_path / "larger.safetensors")))
    assert "has 10 positions in visual.positional_embedding, tiny-plain has 5" in caplog.text


# What is refused


def test_an_unknown_architecture_is_refused_with_those_like_it():
    message = refusal(name="vit-b-23", random_weights=True)
    assert message.startswith(
        "model.name vit-b-23 is no architecture of open_clip's; did you mean "
    )
    assert "ViT-B-32" in message and message.endswith("local-dir:FOLDER or hf-hub:ID")


def test_an_unknown_tag_is_refused_with_the_possible_ones():
    message = refusal(name="ViT-B-32", pretrained="opnai")
    assert message.startswith(
        "model.pretrained opnai is no tag of ViT-B-32; possible: a checkpoint"
    )
    assert "openai, laion400m_e31" in message


def test_a_tag_of_another_architecture_is_refused_with_its_own():
    message = refusal(name="ViT-B-32-quickgelu", pretrained="laion2b_s34b_b79k")
    assert "is no tag of ViT-B-32-quickgelu, but of ViT-B-32; possible: " in message


def test_missing_weights_are_refused_with_the_possible_ones():
    message = refusal(name="ViT-B-32")
    assert message.startswith("model.pretrained is missing; possible: a checkpoint file, or of ViT")
    assert "openai" in message and message.endswith("or say model.random_weights: true")


def test_random_and_other_weights_at_once_are_refused(plain):
    message = refusal(name=plain.name, pretrained=str(plain.file), random_weights=True)
    assert message.endswith("remove one of them")


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path):
    missing = tmp_path / "no.pt"
    message = refusal(FileNotFoundError, name="ViT-B-32", pretrained=str(missing))
    assert message == f"model.pretrained {missing} is not there"
    message = refusal(name="ViT-B-32", pretrained=str(tmp_path))
    assert message.endswith(f"is a folder; write model.name: local-dir:{tmp_path}")
    assert "is no tag of" in refusal(name="ViT-B-32", pretrained="a" * 5000)


def test_a_local_dir_without_config_or_weights_is_refused(tmp_path):
    name = f"local-dir:{tmp_path}"
    file = tmp_path / "open_clip_config.json"
    assert refusal(FileNotFoundError, name=name).endswith(f"{file} is not there")
    assert "Empty path" in refusal(name="local-dir:")
    file.write_text("{")
    assert f"{file} is no JSON" in refusal(name=name)
    for content in ("[]", "{}", '{"model_cfg": {"vision_cfg": 3, "text_cfg": {}}}'):
        file.write_text(content)
        assert refusal(name=name).endswith("has no model_cfg with vision_cfg and text_cfg")
    file.write_text((Path(TINY.removeprefix("local-dir:")) / file.name).read_text())
    message = refusal(FileNotFoundError, name=name)
    assert message.startswith(
        f"{tmp_path} holds no weights (.safetensors, .bin, .pth); name a file"
    )
    assert refusal(name=name, pretrained="openai").startswith(
        "model.pretrained openai is no tag of"
    )


def test_a_tokenizer_that_would_run_a_file_of_its_folder_is_refused(tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass T: pass\n")
    auto = {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "T"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(auto))
    (tmp_path / "config.json").write_text("{}")
    text = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": text | {"context_length": 24}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    message = refusal(name=f"local-dir:{tmp_path}", random_weights=True)
    assert not (tmp_path / "ran").exists()
    assert "has tokenizer_kwargs beside clean, language, strip_sep_token" in message


def test_a_config_that_open_clip_cannot_make_is_refused(tmp_path):
    config = {"embed_dim": 16, "vision_cfg": VISION | {"colour": 3}, "text_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    message = refusal(name=f"local-dir:{tmp_path}", random_weights=True)
    assert "open_clip cannot make it: " in message and "'colour'" in message


def test_a_text_tower_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text = {"hf_model_name": "nobody/nothing", "context_length": 24}
    config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": text}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    message = refusal(name=f"local-dir:{tmp_path}", random_weights=True)
    assert "open_clip cannot make it: " in message


@pytest.fixture
def hub(plain, tmp_path, monkeypatch) -> str:
    """A hub's model as it lies in the cache once it was fetched, and no network."""
    folder, commit = tmp_path / "models--nobody--tiny", "0" * 40
    (snapshot := folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(commit)
    config = json.dumps({"model_cfg": plain.clip.architecture, "preprocess_cfg": {}})
    (snapshot / "open_clip_config.json").write_text(config)
    save_file(plain.model.state_dict(), snapshot / "open_clip_model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return "nobody/tiny"


def test_a_hub_name_and_a_tag_give_the_weights_that_were_fetched(plain, hub, monkeypatch):
    tags = {"mine": {"hf_hub": f"{hub}/open_clip_model.safetensors"}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, plain.name, tags)
    wanted = plain.clip.model.state_dict()
    for config in (
        ModelConfig(name=f"hf-hub:{hub}"),
        ModelConfig(name=plain.name, pretrained="mine"),
    ):
        found = clips.load(config).model.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_hub_name_whose_weights_cannot_be_fetched_is_refused(hub, tmp_path):
    (weights,) = tmp_path.rglob("*.safetensors")
    weights.unlink()
    message = refusal(name=f"hf-hub:{hub}")
    assert message.startswith(f"model.name hf-hub:{hub}: its weights could not be fetched: ")


def test_a_hub_name_without_network_is_refused(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # no retries
    message = refusal(name="hf-hub:nobody/nothing")
    assert message.startswith(
        "model.name hf-hub:nobody/nothing: its open_clip_config.json could not"
    )
    assert message.endswith("or download it and write local-dir:FOLDER")


def test_a_tag_without_network_is_refused(monkeypatch):
    def no_network(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", no_network)
    message = refusal(name="RN50", pretrained="cc12m")
    assert "Failed to download weights for tag 'cc12m': Name or service not known" in message


@pytest.mark.parametrize("form", ["pt", "safetensors"])
@pytest.mark.parametrize("kind", ["custom", "resnet", "sigmoid", "coca", "bert"])
def test_a_checkpoint_of_another_architecture_is_refused(originals, tmp_path, kind, form):
    other = originals[kind]
    file = other.file
    if form == "safetensors":
        file = tmp_path / "other.safetensors"
        save_file(other.model.state_dict(), file)
    name = "tiny-resnet" if kind == "custom" else "tiny-plain"
    message = refusal(name=name, pretrained=str(file))
    assert message.startswith(f"checkpoint {file} does not fit {name}: ")
    assert message.endswith("; set model.name to the architecture that it was saved from")
    assert "tensors are missing" in message or "are none of the model's" in message


def test_shapes_that_do_not_fit_are_named(plain, tmp_path):
    state = {key: value.clone() for key, value in plain.model.state_dict().items()}
    state["visual.proj"] = torch.zeros(32, 8)
    save_file(state, tmp_path / "narrow.safetensors")
    message = refusal(name=plain.name, pretrained=str(tmp_path / "narrow.safetensors"))
    assert "visual.proj is (32, 8), not (32, 16), one of 1 that differ;" in message
    state["visual.proj"] = torch.zeros(8, 64)  # as many values
    save_file(state, tmp_path / "narrow.safetensors")
    message = refusal(name=plain.name, pretrained=str(tmp_path / "narrow.safetensors"))
    assert "visual.proj is (8, 64), not (32, 16)" in message


class Bomb:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(plain, tmp_path):
    ran, file = tmp_path / "ran", tmp_path / "bomb.pt"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"state_dict": {"a": Bomb(Path.touch, ran)}}, file, **options)
        message = refusal(name=plain.name, pretrained=str(file))
        assert message.startswith(f"checkpoint {file} was not read: it asks to run ")
        assert message.endswith("save model.state_dict() alone, best as .safetensors")
    file.write_bytes(pickle.dumps(Bomb(Path.touch, ran), protocol=2))
    refusal(name=plain.name, pretrained=str(file))
    assert not ran.exists()


def test_a_pickle_that_fills_the_memory_is_refused(plain, tmp_path):
    file = tmp_path / "bomb.pt"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"a": Bomb(bytearray, 10**13)}, file, **options)  # torch itself would make it
        assert "it asks to run bytearray" in refusal(name=plain.name, pretrained=str(file))


def test_an_archive_that_unpacks_to_much_more_is_refused(plain, tmp_path):
    file = tmp_path / "bomb.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10**7))
    message = refusal(name=plain.name, pretrained=str(file))
    assert "it would unpack to 10,000,000 bytes" in message


def test_tensors_that_claim_more_than_the_model_has_are_refused_unread(
    plain, tmp_path, monkeypatch
):
    file = tmp_path / "huge.pt"
    torch.save({"visual.positional_embedding": torch.zeros(1, 1).expand(10**7, 10**6)}, file)
    # No Exception, which would be told as if the shapes had been looked at.
    monkeypatch.setattr(
        "trainer.models.weights.load_checkpoint", lambda *_: pytest.fail("it was read")
    )
    message = refusal(name=plain.name, pretrained=str(file))
    assert "visual.positional_embedding is (10000000, 1000000), not (5, 32)" in message


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.npz", "x.bin"])
@pytest.mark.parametrize(
    "content", [b"", b"hello, I am a text", bytes(1000), b"\x80\x02" + b"q" * 99]
)
def test_a_file_that_is_no_checkpoint_is_refused(plain, tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content)
    assert f"checkpoint {file} " in refusal(name=plain.name, pretrained=str(file))


@pytest.mark.parametrize("form", ["pt", "safetensors"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(plain, tmp_path, form, share):
    file = tmp_path / f"whole.{form}"
    if form == "pt":
        file.write_bytes(plain.file.read_bytes())
    else:
        save_file(plain.model.state_dict(), file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    message = refusal(name=plain.name, pretrained=str(file))
    assert message.startswith(f"checkpoint {file} was not read: it is damaged or no checkpoint (")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([1, 2], "it holds no state_dict"),
        ({}, "it holds no state_dict"),
        ({"state_dict": 3}, "it holds no state_dict"),
        (torch.zeros(3), "it holds no state_dict"),
        ({"model": {"a": torch.zeros(1)}}, "its 'model' is no tensor"),
        ({3: torch.zeros(1)}, "its '3' is no tensor"),
    ],
)
def test_a_file_of_other_things_is_refused(plain, tmp_path, content, problem):
    torch.save(content, tmp_path / "other.pt")
    assert problem in refusal(name=plain.name, pretrained=str(tmp_path / "other.pt"))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_torchscript_archive_is_refused(plain, tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    message = refusal(name=plain.name, pretrained=str(tmp_path / "script.pt"))
    assert "it is a TorchScript archive, which is code" in message


# What is warned of


@pytest.mark.parametrize(
    ("name", "tag", "advice"),
    [
        ("ViT-B-32", "openai", "use ViT-B-32-quickgelu"),
        ("ViT-B-32", "laion400m_e32", "use ViT-B-32-quickgelu"),
        ("ViT-B-32", "laion400m-E32", "use ViT-B-32-quickgelu"),  # open_clip takes it as well
        ("RN50", "openai", "use RN50-quickgelu"),
        ("ViT-B-32-quickgelu", "openai", None),
        ("ViT-B-32", "laion2b_s34b_b79k", None),
        # open_clip's table is wrong of these: they were trained as the config says.
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", None),
    ],
)
def test_weights_of_another_activation_are_warned_of(caplog, name, tag, advice):
    warn_of_activation(name, tag)
    assert (caplog.messages != []) == (advice is not None)
    assert advice is None or caplog.messages[0].endswith(advice)


def test_weights_of_gelu_in_an_architecture_of_quickgelu_are_warned_of(caplog, monkeypatch):
    # No tag of today's is both; open_clip refuses them one by one.
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED["ViT-B-32-quickgelu"], "new", {"url": "x"})
    warn_of_activation("ViT-B-32-quickgelu", "new")
    assert caplog.messages[0].endswith("use ViT-B-32")


@pytest.mark.parametrize("is_quick", [True, False])
def test_a_file_of_another_activation_is_warned_of_by_the_config_beside_it(
    plain, tmp_path, caplog, is_quick
):
    config = {"model_cfg": plain.clip.architecture | {"quick_gelu": is_quick}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(plain.model.state_dict(), tmp_path / "mine.safetensors")
    clips.load(ModelConfig(name=plain.name, pretrained=str(tmp_path / "mine.safetensors")))
    assert len(caplog.messages) == is_quick  # tiny-plain has GELU
    assert all(one.endswith(f"use local-dir:{tmp_path}") for one in caplog.messages)


def test_every_activation_that_is_wrong_is_warned_of_with_an_architecture_that_is_right(caplog):
    def is_quick(architecture: str) -> bool:
        return bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu"))

    warned_of = set()
    for name, tag in open_clip.list_pretrained():
        caplog.clear()
        warn_of_activation(name, tag)
        trained_quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
        others = {f"{name}-quickgelu", name.removesuffix("-quickgelu")} - {name}
        others &= set(open_clip.list_models())
        is_wrong = trained_quick != is_quick(name) and bool(others)
        assert len(caplog.messages) == is_wrong, (name, tag)
        for message in caplog.messages:
            other = message.rpartition("use ")[2]
            assert other in others and is_quick(other) == trained_quick
            assert open_clip.pretrained.is_pretrained_cfg(other, tag)
            warned_of.add(name)
    assert warned_of >= {"RN50", "ViT-B-32", "ViT-L-14"}


def test_loading_is_silent_where_nothing_is_wrong(plain, tmp_path, caplog):
    config = json.dumps({"model_cfg": plain.clip.architecture})
    (tmp_path / "open_clip_config.json").write_text(config)
    folder = f"local-dir:{tmp_path}"
    caplog.set_level(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clips.load(ModelConfig(name=folder, random_weights=True))
        clips.load(ModelConfig(name=folder, pretrained=str(plain.file)))
        clips.load(ModelConfig(name=plain.name, pretrained=str(plain.file)))
        save_file(plain.model.state_dict(), tmp_path / "mine.safetensors")
        clips.load(ModelConfig(name=folder))
    assert caplog.messages == []


def test_what_open_clip_warns_of_with_reason_is_still_heard(plain, tmp_path, caplog):
    config = json.dumps({"model_cfg": plain.clip.architecture})
    (tmp_path / "open_clip_config.json").write_text(config)
    for name in ("a.safetensors", "b.safetensors"):
        save_file(plain.model.state_dict(), tmp_path / name)
    clips.load(ModelConfig(name=f"local-dir:{tmp_path}"))
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("Multiple checkpoints found")
    logging.getLogger().warning("No pretrained weights loaded for model: said by someone else")
    assert len(caplog.messages) == 2


def test_the_tokenizer_knows_its_length():
    assert Tokenizer(open_clip.get_tokenizer("ViT-B-32")).context_length == 77
