"""One block of the decoder on a pack of documents, beside transformers' layer.

Transformers' layer takes the documents as rows filled up to the longest, or packed where flash attention is installed.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medmo_core.models.config import PRESETS
from medmo_core.models.medmo import MedMO
from medmo_core.modules.rope import mrope_table

from ..peers.transformers_model import Flavour, flavours
from ..suite.comparison import Comparison, Work
from .documents import random_model, skeleton
from .sides import BACKWARD, BOTH, FORWARD, ModelPart, Side, compare, unpacked

RAGGED = (2048, 1900, 1700, 1500, 1300, 1100, 900, 750, 600, 500, 400, 300, 250, 200, 150, 100)


@dataclass(frozen=True)
class Pack:
    """Documents of random hidden states.

    Attributes:
        lengths: lengths of the documents.
        x: (T, E) states.
        positions: (T,) of each token in its document.
    """

    lengths: tuple[int, ...]
    x: Tensor
    positions: Tensor

    @classmethod
    def make(cls, lengths: tuple[int, ...], width: int, device: torch.device) -> "Pack":
        """Draw states."""
        x = torch.randn(sum(lengths), width, generator=torch.Generator().manual_seed(0))
        positions = torch.cat([torch.arange(length) for length in lengths])
        return cls(lengths, x.to(device), positions.to(device))

    def rows(self) -> Tensor:
        """Return where the tokens stand once short documents are filled up."""
        starts = torch.arange(len(self.lengths)) * max(self.lengths)
        return starts.repeat_interleave(torch.tensor(self.lengths)).to(self.x.device) + self.positions


def our_side(model: MedMO, pack: Pack) -> Side:
    """Return our block."""
    decoder = model.decoder
    layer, x = decoder.layers[0], pack.x.to(model.head_weight.dtype, copy=True).requires_grad_()
    table = mrope_table(pack.positions.expand(3, -1), decoder.head_dim, decoder.rope_theta, decoder.mrope_sections)
    bounds = torch.tensor([0, *pack.lengths]).cumsum(0, dtype=torch.int32).to(x.device)

    def run() -> list[Tensor]:
        return [layer(x, bounds, table, None, max(pack.lengths))[0]]

    return Side(run, [x], dict(layer.named_parameters()))


def their_side(model: Any, flavour: Flavour, pack: Pack) -> Side:
    """Return transformers' layer."""
    decoder = model.model.language_model
    layer, packed = decoder.layers[0], pack.x.to(decoder.dtype)
    options: dict[str, Tensor] = {}
    if flavour.attention.startswith("flash"):
        rows, x, positions = None, packed[None], pack.positions[None]
        options["position_ids"] = positions
    else:
        rows, shape = pack.rows(), (len(pack.lengths), max(pack.lengths))
        x = unpacked(packed, rows, (*shape, packed.shape[1]))
        positions = torch.arange(shape[1], device=x.device).expand(shape)
    x = x.clone().requires_grad_()
    table = decoder.rotary_emb(x, positions.expand(3, -1, -1))

    def run() -> list[Tensor]:
        return [layer(x, position_embeddings=table, attention_mask=None, **options)]

    return Side(run, [x], dict(layer.named_parameters()), rows)


def make_model(preset: str, device: torch.device, dtype: torch.dtype) -> MedMO:
    """Build a model that is little beside one block of its decoder."""
    vision = {"depth": 1, "hidden_size": 128, "intermediate_size": 128, "num_heads": 2, "deepstack_visual_indexes": ()}
    return random_model(preset, device, dtype, vocab_size=64, num_hidden_layers=1, vision=vision)


def work_of(preset: str, lengths: tuple[int, ...]) -> dict[str, Work]:
    """Count the operations of linear layers and of causal attention, and of their gradients."""
    text, layer = PRESETS[preset].text, skeleton(preset).decoder.layers[0]
    linear = sum(m.in_features * m.out_features for m in layer.modules() if isinstance(m, nn.Linear))
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    flops = 2 * linear * sum(lengths) + 4 * text.num_attention_heads * text.head_dim * pairs
    factors = {FORWARD: 1, BACKWARD: 2, BOTH: 3}
    return {direction: Work(flops=n * flops, items=sum(lengths), unit="tokens") for direction, n in factors.items()}


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons for this machine."""
    if device.type == "cuda":
        dtype, shown = torch.bfloat16, {"medmo-4b": "4B", "medmo-8b": "8B"}
        packs = {"16 ragged documents": RAGGED, "8 documents of 1,900 tokens": (1900,) * 8}
    else:
        dtype, shown = torch.float32, {"tiny": "tiny"}
        packs = {"3 ragged documents": (28, 20, 12)}
        if not short:
            packs |= {"4 ragged documents": (400, 200, 100, 50), "4 documents of 190 tokens": (190,) * 4}
    return [_comparison(preset, name, what, lengths, dtype, device)
            for preset, name in shown.items() for what, lengths in packs.items()]  # fmt: skip


def _comparison(
    preset: str, name: str, what: str, lengths: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Comparison:
    width = PRESETS[preset].text.hidden_size
    part = ModelPart(
        partial(make_model, preset, device, dtype), our_side, their_side,
        partial(Pack.make, (9, 5, 2), width, device), partial(Pack.make, lengths, width, device),
    )  # fmt: skip
    return compare(
        part, dtype, _touching(flavours(device)), subject="decoder_block", case=f"{name}, {what}",
        work=work_of(preset, lengths), seconds=2.0 if device.type == "cuda" else 1.0,
    )  # fmt: skip


def _touching(found: list[tuple[Flavour, str]]) -> list[tuple[Flavour, str]]:
    """Leave out stock where it is the next flavour but for its patch embedding."""
    return found[1:] if found[0][0].attention == found[1][0].attention else found
