"""What the checks have in common: a plugin's class made from its options, and global seeds."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError


def made(cls: Any, base: Any, options: dict[str, Any], seed: int) -> Any:
    name = cls.__name__
    kind = vars(cls).get("kind")
    assert isinstance(kind, str) and re.fullmatch(r"[a-z]\w*", kind), (
        f'{name}.kind is {kind!r}; write kind = "a_word_in_small_letters" in the class'
    )
    inherits = inspect.isclass(cls.Options) and issubclass(cls.Options, base.Options)
    assert inherits, f"{name}.Options is no subclass of {base.__name__}.Options; inherit from it"
    config = cls.Options.model_config
    assert config.get("frozen") and config.get("extra") == "forbid", (
        f"{name}.Options is not frozen or takes unknown options; leave model_config as inherited"
    )
    assert "kind" not in cls.Options.model_fields, (
        f"{name}.Options has a field `kind`, which is a configuration's own word; rename it"
    )
    try:
        built = cls.Options(**options)
    except ValidationError as error:
        raise AssertionError(f"{name}.Options refuses the options of this check: {error}") from None
    found = cls(built, seed)
    assert vars(found).get("options") is built and vars(found).get("seed") == seed, (
        f"{name}.__init__ does not keep its options and seed; call super().__init__(options, seed)"
    )
    return found


@contextmanager
def global_seeds(seed: int) -> Iterator[None]:
    """Other global random numbers for each seed, and afterwards as if nothing had been drawn."""
    kept, kept_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(kept_numpy)
