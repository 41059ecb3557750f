"""Work on several real processes that are joined over gloo, warm ones."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.warm_python import warm_python

RANK = """
import pickle, sys
from pathlib import Path
import torch.distributed as dist

rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
work, given = pickle.loads((folder / "work").read_bytes())
dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks)
(folder / f"{rank}").write_bytes(pickle.dumps(work(rank, *given)))
dist.destroy_process_group()
"""


def on_ranks(ranks: int, work: Callable, *given: Any) -> list:
    """What `work(rank, *given)` gives on each; a function of a module, since it is pickled."""
    with TemporaryDirectory() as folder:
        Path(folder, "work").write_bytes(pickle.dumps((work, given)))
        processes = [
            subprocess.Popen(
                [warm_python(), "-c", RANK, str(rank), str(ranks), folder],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},  # pytest adds to it
                stderr=subprocess.PIPE, text=True,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        for process in processes:
            told = process.communicate(timeout=300)[1]
            assert process.returncode == 0, told
        return [pickle.loads(Path(folder, f"{rank}").read_bytes()) for rank in range(ranks)]
