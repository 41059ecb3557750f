"""The model that a run was given, in its parts: teacher, towers that nobody trains, encoders."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch

from trainer.api import Tower
from trainer.configuration.sections import ModelConfig
from trainer.models import clip as clips
from trainer.models.blocks import lean
from trainer.models.clip import Clip, Towers
from trainer.models.encoder import ClipEncoder, on_device


class Original:
    """towers: those that train, as they were loaded. teacher: they, frozen, on the device, in the
    run's precision. logit_scale: their temperature there, which a teacher that is shown nothing
    does not tell.
    """

    def __init__(
        self,
        clip: Clip,
        trained: frozenset[Tower],
        device: torch.device,
        precision: torch.dtype,
        autocasts: bool,
        placed: str,
    ):
        """autocasts: whether the student computes so. placed: see `MemoryConfig.teacher`."""
        self._clip, self._device, self._placed = clip, device, placed
        self._replica = partial(clips.replica, dtype=precision, for_autocast=autocasts)
        self._autocast = precision if autocasts else None
        self.towers = Towers(clip, trained)
        self.logit_scale = self.towers(None, None)[2].detach().to(device)
        self.teacher = self._replica(self.towers, device, placed=placed)
        by_autocast = " by autocast" if autocasts and placed == "whole" else ""
        self.computed = f"{precision}{by_autocast}"  # the teacher's embeddings, in words
        self._rest = clips.frozen(Towers(clip, frozenset(Tower) - trained))
        if device.type != "cpu":  # there a second copy would serve nothing
            self._rest = self._replica(self._rest, torch.device("cpu"))

    def encoder(self, towers: Towers) -> ClipEncoder:
        """With these, and the original's where they have none."""
        text = towers if towers.text else self._rest
        image = towers if towers.image else self._rest
        return ClipEncoder(text, image, self._clip, self._device, autocast=self._autocast)

    def at_hand(self) -> AbstractContextManager[None]:
        """What nobody trains is on the device meanwhile, else on the CPU."""
        return on_device(self._rest, self._device)

    def encoder_of_exported(self, folder: Path) -> ClipEncoder:
        """As the run's own models are; of its weights as they were rounded."""
        exported = clips.load(ModelConfig(name=f"local-dir:{folder}"))
        lean(exported.model)
        towers = Towers(exported, frozenset(Tower))
        return self.encoder(self._replica(towers, self._device, placed=self._placed))
