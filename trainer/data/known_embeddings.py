"""What a teacher makes of clean samples, kept beside their shards: where it is, and a sample's.

A file a shard and tower, `SHARD.text-TEACHER.safetensors`, TEACHER a digest of the tower: a row for
each sample, of NaN where nothing is kept. Runs of the same teacher on the same shards
share them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from glob import escape, glob
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from trainer.api import Objective, Sample, Source, Tower
from trainer.configuration.sections import DataConfig
from trainer.data.index import Index, is_of, open_shard, path_beside, probe
from trainer.data.samples import LocalSample
from trainer.data.streams import expand_local

ROWS = "embeddings"  # in a file
MAX_OPEN_FILES = 256  # of a loader worker; each is mapped, not read
DIGITS = 16  # of a teacher's digest in a file's name


@dataclass(frozen=True)
class KnownEmbeddings:
    """Where the embeddings of the samples are that objectives show a teacher as they are.

    towers: by objective. shards: of each tower those that it is shown. teachers: of each tower its
    digest. width, dtype: of an embedding. folder: of the files; None: they are beside the shards.
    It is pickled to the loader's workers.
    """

    towers: Mapping[str, frozenset[Tower]]
    shards: Mapping[Tower, Sequence[str]]
    teachers: Mapping[Tower, str]
    width: int
    dtype: torch.dtype
    folder: str | None

    @staticmethod
    def of(
        objectives: Mapping[str, Objective],
        data: DataConfig,
        teachers: Mapping[Tower, str],
        width: int,
        dtype: torch.dtype,
    ) -> KnownEmbeddings:
        """None of which needs to be there yet. Raises ValueError where no objective has such
        samples, or they are no local tars."""
        towers = {name: one.repeats_clean for name, one in objectives.items() if one.repeats_clean}
        if not towers:
            raise ValueError(
                "data.embeddings: no objective here shows the teacher clean samples as they are; "
                "leave it out"
            )
        shards: dict[Tower, list[str]] = {}
        for name, own in towers.items():
            for shard in _tars(objectives[name].options.shards or data.shards):
                for tower in own:
                    shards.setdefault(tower, []).append(shard)
        once = {tower: sorted(set(own)) for tower, own in shards.items()}
        return KnownEmbeddings(towers, once, teachers, width, dtype, data.index)

    def find(self, objective: str, tower: Tower, sample: Sample) -> np.ndarray | None:
        """(width,) of the teacher's, None where none is kept.

        Raises ValueError where the file is of another shard or teacher.
        """
        if tower not in self.towers.get(objective, ()) or not isinstance(sample, LocalSample):
            return None
        shard, row = sample.place
        rows = self._open(shard, tower)
        if row >= len(rows):
            raise ValueError(f"{self._path(shard, tower)} is damaged; remove it")
        return None if np.isnan(rows[row]).any() else rows[row]

    def missing(self) -> list[tuple[str, Tower]]:
        """The shards without a file, or with one of another shard or teacher."""
        return [
            (shard, tower)
            for tower, shards in self.shards.items()
            for shard in shards
            if self._why_not(shard, tower) is not None
        ]

    def check(self) -> None:
        """Raises ValueError where a shard has none, naming the first."""
        if missing := self.missing():
            raise ValueError(
                f"data.embeddings: {self._why_not(*missing[0])} ({len(missing)} of "
                f"{sum(map(len, self.shards.values()))} files); data.embeddings=make makes them"
            )

    def _why_not(self, shard: str, tower: Tower) -> str | None:
        path = self._path(shard, tower)
        if not os.path.exists(path):
            stem = path.rpartition("-")[0]
            others = glob(f"{escape(stem)}-*.safetensors")
            whose = "has them of another teacher alone" if others else "has none"
            return f"{shard} {whose}, {path} is not there"
        if not os.access(path, os.R_OK):
            return f"{path} is for its owner alone; name a folder of your own as data.index"
        try:
            self._open(shard, tower)
        except ValueError as error:
            return str(error)
        return None

    def save(self, rows: Tensor, shard: str, tower: Tower) -> None:
        """rows: (n, width), one for each sample. Whole or not at all; raises OSError."""
        now, columns = os.stat(shard), open_shard(shard, None, self.folder)
        said = {
            "teacher": self.teachers[tower],
            "size": str(now.st_size),
            "modified_ns": str(now.st_mtime_ns),
            "probes": probe(shard, columns).hex(),
        }
        path = self._path(shard, tower)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        aside = f"{path}.{os.uname().nodename}.{os.getpid()}.tmp"
        try:
            # An empty shard has one bad sample, and no row. What is too large for float16 is left
            # to every step.
            kept = rows[: len(columns)].to(self.dtype).nan_to_num(torch.nan, torch.nan, torch.nan)
            # For its owner alone: of which captions nothing is kept tells who is to be forgotten.
            # Not by save_file, whose errors are not the system's.
            Path(aside).unlink(missing_ok=True)
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(save({ROWS: kept}, said))
            os.replace(aside, path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise

    def _path(self, shard: str, tower: Tower) -> str:
        ending = f"{tower.value}-{self.teachers[tower][:DIGITS]}.safetensors"
        path = path_beside(shard, self.folder, ending)
        assert path is not None  # of a local shard there is one
        return path

    def _open(self, shard: str, tower: Tower) -> np.ndarray:
        path = self._path(shard, tower)
        return _opened(path, shard, self.teachers[tower], self.width, self.dtype, self.folder)


def _tars(sources: Sequence[str | Source]) -> list[str]:
    patterns = [
        pattern for one in sources for pattern in ([one] if isinstance(one, str) else one.shards)
    ]
    return [os.path.abspath(shard) for shard in expand_local(patterns, "data.embeddings")]


@lru_cache(maxsize=MAX_OPEN_FILES)
def _opened(
    path: str, shard: str, teacher: str, width: int, dtype: torch.dtype, folder: str | None
) -> np.ndarray:
    """(n, width), mapped. Raises ValueError for a file that is damaged, or of another
    shard or teacher."""
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            rows = file.get_tensor(ROWS)
        size, modified_ns = int(said["size"]), int(said["modified_ns"])
        its_teacher, probes = said["teacher"], bytes.fromhex(said["probes"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it") from None
    if its_teacher != teacher:
        raise ValueError(f"{path} is of another teacher; remove it")
    now = os.stat(shard)
    if (now.st_size, now.st_mtime_ns) != (size, modified_ns):  # else no header of it is read
        index = Index(open_shard(shard, None, folder), size, modified_ns, probes)
        if not is_of(index, shard):
            raise ValueError(f"{path} is of {shard} as it was before it changed; remove it")
    if rows.dtype != dtype or rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"{path} is damaged; remove it")
    return rows.numpy()
