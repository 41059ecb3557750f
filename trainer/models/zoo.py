"""What a model's name and weights mean to open_clip, and what it says of them in vain."""

from __future__ import annotations

import difflib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import open_clip
from open_clip.factory import _find_checkpoint_in_dir, _get_hf_config, parse_model_name
from open_clip.pretrained import download_pretrained_from_hf, is_pretrained_cfg
from open_clip.transform import PreprocessCfg

from trainer.configuration.sections import ModelConfig
from trainer.models.weights import first_line

log = logging.getLogger(__name__)

TOKENIZER_OPTIONS = {"clean", "language", "strip_sep_token"}
CONFIG = "open_clip_config.json"  # of a `local-dir:` or `hf-hub:` model


def name_of(config: ModelConfig) -> str:
    """As open_clip lists it: OpenAI's names of its own models have a slash."""
    schema, identifier = parse_model_name(config.name)
    return config.name if schema else identifier.replace("/", "-")


def architecture_of(name: str) -> dict:
    """open_clip's model_cfg of an architecture, `local-dir:` or `hf-hub:` name."""
    schema, identifier = parse_model_name(name)
    if schema == "local-dir":
        path = Path(identifier) / CONFIG
        if not path.is_file():
            raise FileNotFoundError(f"model.name {name}: {path} is not there")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
    elif schema == "hf-hub":
        try:
            config = _get_hf_config(identifier)
        except Exception as error:  # no network, no such model, no access
            raise ValueError(
                f"model.name {name}: its {CONFIG} could not be fetched: {first_line(error)[:300]}; "
                "check the name and the network, or download it and write local-dir:FOLDER"
            ) from error
    else:
        known = {one.lower(): one for one in open_clip.list_models()}
        if name not in known.values():
            close = [known[one] for one in difflib.get_close_matches(name.lower(), known)]
            raise ValueError(
                f"model.name {name} is no architecture of open_clip's"
                f"{'; did you mean ' + ' or '.join(close) + '?' if close else ''}"
                "; it may also be local-dir:FOLDER or hf-hub:ID"
            )
        config = {"model_cfg": open_clip.get_model_config(name)}
    architecture = config.get("model_cfg") if isinstance(config, dict) else None
    parts = ("vision_cfg", "text_cfg")
    if not isinstance(architecture, dict) or not all(
        isinstance(architecture.get(p), dict) for p in parts
    ):
        raise ValueError(
            f"model.name {name}: its {CONFIG} has no model_cfg with {' and '.join(parts)}"
        )
    # They reach transformers as they are, which runs a file of the folder if one says so.
    said = architecture["text_cfg"].get("tokenizer_kwargs") or {}
    if not isinstance(said, dict) or not said.keys() <= TOKENIZER_OPTIONS:
        raise ValueError(
            f"model.name {name}: its {CONFIG} has tokenizer_kwargs beside "
            f"{', '.join(sorted(TOKENIZER_OPTIONS))}; take them out"
        )
    return architecture


def weights_of(config: ModelConfig, name: str) -> tuple[str | None, Path | None]:
    """The tag or the file that the weights are of; neither, where they are to be random."""
    schema, identifier = parse_model_name(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    possible = f"a checkpoint file{', or of ' + name + ' ' + ', '.join(tags) if tags else ''}"
    wanted = config.pretrained
    if wanted is None:
        if config.random_weights:
            return None, None
        if schema == "local-dir":
            return None, _own_weights(Path(identifier))
        if schema == "hf-hub":
            try:
                return None, Path(str(download_pretrained_from_hf(identifier)))
            except Exception as error:
                raise ValueError(
                    f"model.name {name}: its weights could not be fetched: "
                    f"{first_line(error)[:300]}"
                ) from error
        raise ValueError(
            f"model.pretrained is missing; possible: {possible}; or say model.random_weights: true"
        )
    # os.path's, since a text too long for a path is no error to them
    if os.path.isdir(wanted):
        raise ValueError(
            f"model.pretrained {wanted} is a folder; write model.name: local-dir:{wanted}"
        )
    if config.random_weights:
        raise ValueError(f"model.random_weights and model.pretrained {wanted}: remove one of them")
    if os.path.isfile(wanted):
        return None, Path(wanted)
    if is_pretrained_cfg(name, wanted):
        return wanted, None
    if "/" in wanted or Path(wanted).suffix in (".pt", ".pth", ".bin", ".safetensors", ".npz"):
        raise FileNotFoundError(f"model.pretrained {wanted} is not there")
    others = open_clip.list_pretrained_models_by_tag(wanted)
    elsewhere = f", but of {' and '.join(others)}" if others else ""
    raise ValueError(
        f"model.pretrained {wanted} is no tag of {name}{elsewhere}; possible: {possible}"
    )


def _own_weights(folder: Path) -> Path:
    """The checkpoint that open_clip takes from a folder."""
    files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth")]
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no weights (.safetensors, .bin, .pth); name a file in "
            "model.pretrained, or say model.random_weights: true"
        )
    # Of several it warns, of one as well.
    return files[0] if len(files) == 1 else Path(str(_find_checkpoint_in_dir(folder)))


def preprocessing_beside(name: str, path: Path) -> dict:
    """The preprocess_cfg that a checkpoint file was trained with, as far as it can be known.

    That of the config beside it, as exports have; else what all known weights of the architecture
    have in common: open_clip itself prepares pictures for any file as OpenAI's models want them.
    """
    options = asdict(PreprocessCfg()).keys() - {"size"}
    if found := _beside(path, "preprocess_cfg"):
        return {key: value for key, value in found.items() if key in options}
    known = [
        {
            key: value
            for key, value in open_clip.get_pretrained_cfg(name, tag).items()
            if key in options
        }
        for tag in open_clip.list_pretrained_tags_by_model(name)
    ]
    return known[0] if known and all(one == known[0] for one in known) else {}


def has_preprocessing_beside(path: Path) -> bool:
    return bool(_beside(path, "preprocess_cfg"))


def _beside(path: Path, part: str) -> dict:
    """Of the config beside a checkpoint file; empty where there is none, or it does not say."""
    try:
        found = json.loads(path.with_name(CONFIG).read_text(encoding="utf-8"))[part]
    except (OSError, ValueError, LookupError, TypeError):
        return {}  # some other file of that name
    return found if isinstance(found, dict) else {}


def warn_of_activation_beside(name: str, architecture: dict, path: Path) -> None:
    """The same of a checkpoint file, where the config beside it says, as exports have."""
    trained = _beside(path, "model_cfg")
    if trained and bool(trained.get("quick_gelu")) != bool(architecture.get("quick_gelu")):
        log.warning(
            "%s's activation is not the one that %s was trained with, as %s beside it says; "
            "use local-dir:%s",
            name, path, CONFIG, path.parent,
        )  # fmt: skip


def warn_of_activation(name: str, tag: str) -> None:
    """Weights trained with QuickGELU in a GELU architecture lose points silently, and the reverse.

    Only where another architecture has the right one: open_clip's table of tags has mistakes.
    """
    trained_quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    is_quick = bool((open_clip.get_model_config(name) or {}).get("quick_gelu"))
    other = name.removesuffix("-quickgelu") if is_quick else f"{name}-quickgelu"
    if trained_quick != is_quick and other != name and other in open_clip.list_models():
        log.warning(
            "%s's activation is not the one that the weights '%s' were trained with; use %s",
            name, tag, other,
        )  # fmt: skip


# Of weights that we did not ask open_clip for, but read ourselves or want random.
FALSE_ALARMS = (
    "No pretrained weights loaded for model",
    "Local config loaded, but no CLIP weights found",
    "Multiple checkpoints found in",
)


def _is_true(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(FALSE_ALARMS)


@contextmanager
def without_false_alarms() -> Iterator[None]:
    root = logging.getLogger()  # open_clip has no logger of its own
    root.addFilter(_is_true)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "QuickGELU mismatch")  # we say what to do about it
            yield
    finally:
        root.removeFilter(_is_true)
