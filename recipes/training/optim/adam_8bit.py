"""AdamW with 8-bit moments: torchao's block-quantised numbers, with blocks that belong to the whole parameter.

torchao decides from a process's shard whether a moment is 8-bit and where its blocks of 256 begin, so that its state
depends on the number of processes. Here a moment is 8-bit only when every row of the whole parameter is a whole number
of blocks: however the rows are divided, the blocks are the same. All other moments stay in fp32 (norms, biases, and
matrices like the 1,152 wide ones of the 8B model's vision encoder). Codes and scales are plain tensors, sharded in rows
like their parameter.

Reference: Dettmers et al., 8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861.
"""

import torch
from torch import Tensor

from medmo_core.optional import import_optional

from ..distributed.shards import row_size
from .adam import TrainedParameter
from .adam_bf16 import Moment, RoundingAdamW, WideMoment

BLOCK = 256
"""Numbers that share a scale; torchao's default."""
SMALLEST = 4096
"""Parameters of fewer numbers keep fp32 moments, as in torchao and bitsandbytes."""


def has_8bit_moments(parameter: Tensor) -> bool:
    """Whether a parameter's moments are kept in 8 bits; the same for every way of dividing it."""
    return parameter.numel() >= SMALLEST and row_size(parameter) % BLOCK == 0


class QuantisedMoment:
    """uint8 codes of a table of 256 values, times one fp32 scale per block."""

    def __init__(self) -> None:
        self._torchao = import_optional("torchao.optim.quant_utils", "quant", "optim.kind=adamw_8bit")
        # 256 values that codes stand for: with signs for the first moment, without for the second.
        self._values = {
            kind: self._torchao.create_dynamic_map(signed=kind == "exp_avg") for kind in ("exp_avg", "exp_avg_sq")
        }
        self._tables: dict[tuple[str, torch.device], Tensor] = {}

    def _table(self, kind: str, device: torch.device) -> Tensor:
        """Return the values that a moment's codes stand for."""
        if (kind, device) not in self._tables:
            self._tables[kind, device] = torch.tensor(self._values[kind], dtype=torch.float32, device=device)
        return self._tables[kind, device]

    def zeros(self, part: TrainedParameter, kind: str) -> dict[str, Tensor]:
        """Return codes and scales that stand for zero: a scale of 0 makes every code 0, as in torchao."""
        local = part.local
        scales = torch.zeros(local.shape[0], row_size(local) // BLOCK, device=local.device)
        return {f"{kind}_codes": torch.zeros_like(local, dtype=torch.uint8), f"{kind}_scales": scales}

    def read(self, part: TrainedParameter, kind: str, span: slice) -> Tensor:
        """Return a run of it, which begins and ends with a block."""
        codes, scales = self._run(part, kind, span)
        return self._torchao.dequant_with_qmap(codes, self._table(kind, codes.device), scales)

    def write(self, part: TrainedParameter, kind: str, span: slice, values: Tensor, key: str, first: int) -> None:
        """Keep new values of that run, each as the nearest in its block's scale."""
        codes, scales = self._run(part, kind, span)
        scaled, new_scales = self._torchao.scale_tensor(values, BLOCK)
        codes.copy_(self._torchao.quantize_8bit_with_qmap(scaled, self._table(kind, codes.device)))
        scales.copy_(new_scales)

    def _run(self, part: TrainedParameter, kind: str, span: slice) -> tuple[Tensor, Tensor]:
        codes, scales = part.state[f"{kind}_codes"].view(-1), part.state[f"{kind}_scales"].view(-1)
        stop = min(span.stop, codes.numel())
        return codes[span], scales[span.start // BLOCK : stop // BLOCK]


class QuantisedAdamW(RoundingAdamW):
    """AdamW on bfloat16 weights without a master copy, with 8-bit moments where blocks fit."""

    def __init__(self) -> None:
        self._wide, self._quantised = WideMoment(), QuantisedMoment()

    def moment(self, part: TrainedParameter) -> Moment:
        """Return how the moments of a parameter are kept."""
        return self._quantised if has_8bit_moments(part.parameter) else self._wide
