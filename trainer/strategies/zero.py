"""The trained weights and AdamW's moments as DeepSpeed's ZeRO has them: in parts, on all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch import distributed as dist

from trainer.strategies.pieces import Parts, Piece
from trainer.strategies.spread import MOMENTS, STEP, Spread, is_main, on_main

GATHERED = 25_000_000  # values that the main process is sent at a time, by all: 100 MB


class ZeroSpread(Spread):
    """Of DeepSpeed's ZeRO-1, -2 and -3, whose parts it tells of."""

    def __init__(self, trained: Mapping[str, nn.Parameter], optimizer: Any):
        super().__init__(trained, optimizer)
        self._zero = self._optimizer  # DeepSpeed's, around torch's AdamW
        self._adamw = self._zero.optimizer
        self._everywhere: list[Parts] | None = None  # each rank's, which do not change
        self._room: Tensor | None = None  # to send from and receive in: slow to touch when new

    def weights(self) -> Iterator[Piece]:
        dtypes = {parameter.dtype for parameter in self.trained.values()}
        if not self._is_stage_3 and dtypes == {torch.float32}:
            return super().weights()  # after a step every rank has all, as AdamW made them
        return self._gathered("", None)

    def moments(self) -> Iterator[Piece]:
        if not any(self._adamw.state.values()):  # no step yet: fp16 passes over the first few
            return
        self._link_states()
        step = next(iter(self._adamw.state.values()))[STEP]
        for key in MOMENTS:
            yield from self._gathered(f"{key}/", key)
        for name in self.trained:
            yield from on_main(f"{STEP}/{name}", step)

    def _gathered(self, prefix: str, key: str | None) -> Iterator[Piece]:
        """The float32 weights, or moments of that key: of each rank its own part alone, many
        parameters at a time. DeepSpeed has a collective for each, which gives all to everyone.
        """
        if self._everywhere is None:
            self._everywhere = gather_object([self._own_parts()])
        rank, everywhere = dist.get_rank(), self._everywhere
        longest = max(parts.ends[-1] if parts.ends else 0 for parts in everywhere)
        at_a_time = min(longest, max(1, GATHERED // len(everywhere)))
        if self._room is None:
            device = next(iter(self.trained.values())).device
            num_rows = len(everywhere) - 1 if is_main() else 1
            self._room = torch.zeros(num_rows, at_a_time, device=device)
        for begin in range(0, longest, at_a_time):
            end = min(longest, begin + at_a_time)
            own = self._own_values(everywhere[rank].within(begin, end), key)
            room = self._room[:, : end - begin]
            if not is_main():
                for _, _, low, high, values in own:
                    room[0, low:high] = values
                _exchange([dist.P2POp(dist.isend, room[0], 0)])
                continue
            _exchange([dist.P2POp(dist.irecv, row, i) for i, row in enumerate(room, 1)])
            for name, start, _, _, values in own:
                yield Piece(prefix + name, _shape_of(self.trained[name]), start, values)
            for parts, values in zip(everywhere[1:], room):
                for name, start, low, high in parts.within(begin, end):
                    shape = _shape_of(self.trained[name])
                    yield Piece(prefix + name, shape, start, values[low:high])

    def _own_values(
        self, places: Iterable[tuple[str, int, int, int]], key: str | None
    ) -> Iterator[tuple[str, int, int, int, Tensor]]:
        """With each place, as `Parts.within` gives it, what stands there."""
        for name, start, low, high in places:
            first, values = self._own_part(self.trained[name], key)
            at = start - first
            yield name, start, low, high, values[at : at + high - low].detach()

    def _own_parts(self) -> Parts:
        parts = Parts([], [], [])
        for name, parameter in self.trained.items():
            start, values = self._own_part(parameter, None)
            # ZeRO-3 fills parts up to the same size.
            size = min(len(values), _shape_of(parameter).numel() - start)
            if size > 0:
                parts.names.append(name)
                parts.starts.append(start)
                parts.ends.append(size + (parts.ends[-1] if parts.ends else 0))
        return parts

    def _own_part(self, parameter: Any, key: str | None) -> tuple[int, Tensor]:
        """Where it begins in the flat parameter, and its values; there may be none."""
        from deepspeed import utils

        if self._is_stage_3:
            start = dist.get_rank() * parameter.ds_tensor.numel()
            if key is None:
                return start, utils.safe_get_local_fp32_param(parameter)
            return start, utils.safe_get_local_optimizer_state(parameter, key)
        mapping = parameter._hp_mapping
        if mapping is None:
            return 0, torch.empty(0)
        return mapping.lp_fragment_address.start, mapping.get_hp_fragment(key)

    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        steps = [moments[f"{STEP}/{name}"] for name in self.trained if f"{STEP}/{name}" in moments]
        if not steps:
            return
        # ZeRO has one count for all, and makes room for the moments with its first step.
        for part in self._parts():
            state = {key: torch.zeros_like(part) for key in MOMENTS}
            step = torch.tensor(float(max(steps)), device=part.device)  # each part counts its own
            self._adamw.state[part] = {STEP: step} | state
        self._link_states()
        for name, parameter in self.trained.items():
            # In bf16 the student was rounded on its way in: the float32 weights are set here.
            self._set(parameter, weights[name])
            for key in MOMENTS:
                if (moment := moments.get(f"{key}/{name}")) is not None:
                    self._set(parameter, moment, key)

    def begin(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trained.items():
            if parameter.dtype != torch.float32:
                self._set(parameter, weights[name].detach())

    def scale(self) -> dict[str, float]:
        scaler = self._zero.loss_scaler
        if not scaler.dynamic:
            return {}
        steps = scaler.cur_iter - scaler.last_overflow_iter - 1
        since = (steps - 1) % scaler.scale_window + 1 if steps else 0
        return {"scale": scaler.cur_scale, "steps": since, "patience": scaler.cur_hysteresis}

    def load_scale(self, found: Mapping[str, float]) -> None:
        scaler = self._zero.loss_scaler
        if scaler.dynamic and found:
            scaler.cur_scale = found["scale"]
            scaler.last_overflow_iter = scaler.cur_iter - int(found["steps"]) - 1
            # How many overflows more it takes until it scales by less: DeepSpeed's alone.
            scaler.cur_hysteresis = int(found.get("patience", scaler.cur_hysteresis))

    @property
    def _is_stage_3(self) -> bool:
        return hasattr(self._zero, "fp32_partitioned_groups_flat")

    def _link_states(self) -> None:
        """Of ZeRO-1 and -2: DeepSpeed does it after its first group's first step, for which the
        other groups have no states yet, and never again.
        """
        if not self._is_stage_3:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _parts(self) -> list[Tensor]:
        """What AdamW really updates: this rank's part of all weights, flat."""
        if self._is_stage_3:
            return self._zero.fp32_partitioned_groups_flat
        return self._zero.single_partition_of_fp32_groups

    def _set(self, parameter: Any, value: Tensor, key: str | None = None) -> None:
        from deepspeed import utils

        if not self._is_stage_3:
            value = value.to(parameter.device)
            if key is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        # Our own cut: DeepSpeed's leaves out that parts are filled up to the same size.
        rank, ranks = dist.get_rank(), dist.get_world_size()
        size = parameter.ds_tensor.numel()
        flat = F.pad(value.flatten(), (0, size * ranks - value.numel()))
        part = flat[rank * size : (rank + 1) * size]
        if key is None:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, key)


def _shape_of(parameter: Any) -> torch.Size:
    """ZeRO-3 empties a parameter whose weights are not there."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _exchange(operations: list[dist.P2POp]) -> None:
    """As one: NCCL would otherwise make a communicator for each pair."""
    for sent_or_received in dist.batch_isend_irecv(operations) if operations else ():
        sent_or_received.wait()
