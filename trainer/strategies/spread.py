"""The trained weights and AdamW's moments, whole and by name, wherever a strategy keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.strategies.pieces import Piece

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's
STEP = "step"


class Spread:
    """The trained weights and their moments, wherever their parts are.

    All ranks call its methods together, in the same order, and exhaust what they give: pieces, of
    which the main process gets all and the others none. Of one process, DDP and FSDP2.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], optimizer: Any):
        self.trained = trained
        self._optimizer = optimizer.optimizer  # accelerate's wrapper around it
        self._scaler = getattr(optimizer, "scaler", None)  # torch's, under fp16

    def weights(self) -> Iterator[Piece]:
        """Each trained parameter, on the device; float32 where training is."""
        for name, parameter in self.trained.items():
            yield from on_main(name, parameter)

    def moments(self) -> Iterator[Piece]:
        """`exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME` of each that has taken a step; of what
        Muon moves `exp_avg/NAME` alone.
        """
        for name, parameter in self.trained.items():
            state = self._optimizer.state.get(parameter, {})
            for key in (*MOMENTS, STEP):
                if key in state:
                    yield from on_main(f"{key}/{name}", state[key])

    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """As they were put together, on the CPU, to be looked up one by one. The weights themselves
        are in place already: the student had them before it was prepared.
        """
        for name, parameter in self.trained.items():
            state = {
                key: placed_like(parameter, moments[f"{key}/{name}"])
                for key in MOMENTS
                if f"{key}/{name}" in moments
            }
            if f"{STEP}/{name}" in moments:
                state[STEP] = moments[f"{STEP}/{name}"].float().to(parameter.device)
            if state:
                self._optimizer.state[parameter] = state

    def begin(self, weights: Mapping[str, Tensor]) -> None:
        """From the very weights of the original, by name, where they are kept in float32 but were
        rounded on their way in."""

    def scale(self) -> dict[str, float]:
        """By what fp16 multiplies losses, and the steps since; empty in other precisions."""
        if self._scaler is None:
            return {}
        state = self._scaler.state_dict()
        return {"scale": state["scale"], "steps": state["_growth_tracker"]}

    def load_scale(self, found: Mapping[str, float]) -> None:
        """As it was given, under whatever strategy."""
        if self._scaler is not None and found:
            # It grows in the very step that completes its count: one beyond would wait for ever.
            steps = min(int(found["steps"]), self._scaler.get_growth_interval() - 1)
            state = {"scale": found["scale"], "_growth_tracker": steps}
            self._scaler.load_state_dict(self._scaler.state_dict() | state)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def on_main(name: str, tensor: Tensor) -> Iterator[Piece]:
    tensor = whole(tensor)
    if is_main():
        yield Piece.whole(name, tensor)


def placed_like(parameter: Tensor, value: Tensor) -> Tensor:
    """This rank's part of a whole value, where the parameter's is; a copy."""
    value = value.to(parameter.device, copy=True)
    if not isinstance(parameter, DTensor):
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value, mesh, placements, src_data_rank=None)  # each rank has it
