"""What models have in common whose clusters are one component each: names of components, and whether rows are shared.

Shapes: K components.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import ShoalError


@dataclass(frozen=True, eq=False)
class Names:
    """Stable ids of components, which are those of their clusters; 0 to K - 1 until they are given others."""

    given_K: Tensor | None = None  # int64
    floor: int = 0  # ids below were given before

    def ids(self, components: int, device: torch.device) -> Tensor:
        """(K,) int64."""
        return torch.arange(components, device=device) if self.given_K is None else self.given_K.to(device)

    def next_id(self, components: int) -> int:
        """Above every id that was given."""
        return max(self.floor, components if self.given_K is None else 1 + int(self.given_K.max()))

    def tensors(self, components: int) -> dict[str, Tensor]:
        """For safetensors."""
        ids_K = self.ids(components, torch.device("cpu"))
        return {"id_K": ids_K, "next_id": torch.tensor(self.next_id(components))}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Names:
        """The inverse of `tensors`; models of earlier versions have none."""
        return Names(tensors["id_K"], int(tensors["next_id"])) if "id_K" in tensors else AS_NUMBERED


AS_NUMBERED = Names()


def shared_rows(kind: str) -> ShoalError:
    """Why single rows cannot be counted: an error to raise."""
    return ShoalError(f"{kind} share rows among components, so single rows cannot be counted in one; recount all rows.")
