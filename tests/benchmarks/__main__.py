"""`make bench`: every benchmark, or those that are named, kept in runs/bench/results.json."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

STEPS = ("text_step", "image_step", "large", "contrastive_step")
DATA = ("captions", "pictures", "resume", "people", "known_embeddings")
FAST = (*DATA, "attack", *STEPS, "scaling")  # minutes
SLOW = ("leakage", "seeds")  # hours
ON_REQUEST = ("thousands", "ablation")  # days, after `make thousands`
FILE = Path(__file__).parents[2] / "runs/bench/results.json"


def main(names: list[str]) -> None:
    possible = (*FAST, *SLOW, *ON_REQUEST)
    if unknown := set(names) - set(possible):
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(possible)}")
    for name in names or (*FAST, *SLOW):
        print(f"\n{name}: {import_module(f'tests.benchmarks.{name}').__doc__.splitlines()[0]}")
        found = import_module(f"tests.benchmarks.{name}").measure()
        kept = json.loads(FILE.read_text()) if FILE.exists() else {}
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(json.dumps(kept | {name: found}, indent=2))
        for measure, value in found.items():
            if isinstance(value, float):
                print(f"  {measure:<44}{value:>14,.3f}")
    print(f"\nkept in {FILE}")


if __name__ == "__main__":
    main(sys.argv[1:])
