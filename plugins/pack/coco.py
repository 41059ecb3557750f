"""COCO's captions and pictures to shards of pairs, in img2dataset's layout."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from trainer import BadSample, decode_picture

from .shards import Shards, extension_of, in_order, read_picture, told, vacant, written_aside

MAX_JSON_BYTES = 1_000_000_000  # COCO's largest has 92 MB
MAX_CAPTION_BYTES = 20_000  # the trainer reads no longer one
SHAPES = {
    "images": '{"id": 1, "file_name": "1.jpg"}',
    "annotations": '{"image_id": 1, "caption": "a cat"}, as in COCO\'s captions_*.json',
}


class PackedCaptions(NamedTuple):
    """What was written; more samples than pictures where each caption is one."""

    pictures: int
    samples: int
    shards: int
    skipped: Mapping[str, int]  # reason -> number of pictures or captions


class Image(NamedTuple):
    """One of the JSON's images, and the texts to pair it with."""

    id: int
    file_name: str
    texts: list[str]


class Picture(NamedTuple):
    """An image's file, which decodes."""

    data: bytes
    width: int
    height: int


def pack_coco(
    captions: Path, pictures: Path, out: Path, shard_size: int, which: str
) -> PackedCaptions:
    """Write `out`: 00000.tar and so on, in the JSON's order.

    shard_size: samples. which: the `first` caption of a picture, `all` as lines of one text, or a
    sample for `each`. Raises ValueError, FileNotFoundError, FileExistsError.
    """
    place = vacant(out)
    if not pictures.is_dir():
        raise FileNotFoundError(f"{pictures} is no folder; name the one with COCO's pictures")
    skipped: Counter[str] = Counter()
    images = read_images(captions, which, skipped)
    num_pictures = num_samples = 0
    with (
        written_aside(place) as folder,
        closing(Shards(folder, shard_size)) as shards,
        closing(in_order(partial(_load, pictures), images, len(images))) as loaded,
    ):
        for image, picture in zip(images, loaded):
            if isinstance(picture, str):
                skipped[picture] += 1
                continue
            for i, text in enumerate(image.texts):
                # As img2dataset counts: five digits of the shard, four of the place in it.
                key = f"{num_pictures:09d}" + (f"_{i}" if which == "each" else "")
                shards.add(key, _parts(key, text, image, picture))
            num_pictures += 1
            num_samples += len(image.texts)
        if not num_pictures:
            raise ValueError(
                f"no picture in {pictures} has a caption in {captions}; name the folder in which "
                f"its file names are; {told(skipped)}"
            )
    return PackedCaptions(num_pictures, num_samples, shards.count, skipped)


def read_images(path: Path, which: str, skipped: Counter[str]) -> list[Image]:
    """Those with a caption, in their order. Raises ValueError, FileNotFoundError."""
    found = _read_json(path)
    file_names: dict[int, str] = {}
    for number, file_name in _rows(path, found, "images", "id", "file_name"):
        if file_names.setdefault(number, file_name) != file_name:
            raise ValueError(f"{path}: two of `images` have the id {number}; give each its own")
    captions: dict[int, list[str]] = {number: [] for number in file_names}
    for number, caption in _rows(path, found, "annotations", "image_id", "caption"):
        line = " ".join(caption.split())
        if number not in captions:
            skipped["caption of no picture"] += 1
        elif not line or any("\ud800" <= one <= "\udfff" for one in line):
            skipped["caption without a text"] += 1
        else:
            captions[number].append(line)
    images = []
    for number, lines in captions.items():
        texts = {"first": lines[:1], "all": ["\n".join(lines)], "each": lines}[which]
        short = [text for text in texts if len(text.encode()) <= MAX_CAPTION_BYTES]
        skipped["caption too long"] += len(texts) - len(short)
        if any(short):
            images.append(Image(number, file_names[number], short))
        else:
            skipped["picture without a caption"] += 1
    return images


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; name COCO's captions, captions_*.json")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} has more than {MAX_JSON_BYTES:,} bytes; split it")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or nested deeper than Python goes
        raise ValueError(f"{path} is no JSON; name COCO's captions, captions_*.json") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object with `images` and `annotations`")
    return found


def _rows(
    path: Path, found: dict[str, Any], table: str, number: str, text: str
) -> Iterator[tuple[int, str]]:
    """The two fields of each row. Raises ValueError, naming the row that lacks one."""
    rows = found.get(table)
    if not isinstance(rows, list):
        raise ValueError(f"{path} has no list `{table}`; its rows must be like {SHAPES[table]}")
    for i, row in enumerate(rows):
        values = (row.get(number), row.get(text)) if isinstance(row, dict) else (None, None)
        if type(values[0]) is not int or not isinstance(values[1], str):  # a bool is no number
            raise ValueError(f"{path}: {table}[{i}] is not like {SHAPES[table]}")
        yield values[0], values[1]


def _load(folder: Path, image: Image) -> Picture | str:
    """The picture, or why it can't be used."""
    name = PurePosixPath(image.file_name.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts:
        return "file name that leads out of PICTURES"
    if not extension_of(image.file_name):
        return "no picture file"
    path = os.path.join(folder, name)
    try:
        if not os.path.isfile(path):
            return "missing picture"
        data = read_picture(path)
        _, height, width = decode_picture(data).shape
    except BadSample as bad:
        return bad.reason
    except ValueError:  # a name that no file can have
        return "missing picture"
    return Picture(data, width, height)


def _parts(key: str, text: str, image: Image, picture: Picture) -> dict[str, bytes]:
    """By img2dataset's names; COCO's number is no `id`, which the trainer takes for a label."""
    extension = extension_of(image.file_name) or ""
    meta = {
        "caption": text,
        "key": key,
        "status": "success",
        "error_message": None,
        "width": picture.width,
        "height": picture.height,
        "original_width": picture.width,
        "original_height": picture.height,
        "sha256": sha256(picture.data).hexdigest(),
        "image_id": image.id,
    }
    return {
        extension.lower(): picture.data,
        "txt": text.encode(),
        "json": json.dumps(meta, ensure_ascii=False).encode(),
    }
