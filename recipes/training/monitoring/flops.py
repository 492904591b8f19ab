"""Useful floating-point operations: what a batch needs, whatever the run does beside it.

Counted are the products of matrices in vision encoder, projector, decoder and head, forward and backward: a backward
pass costs one product for the gradient of a layer's input, where anything before it trains, and one for that of its
weight, where that trains. So a model that trains whole costs three times its forward pass, a frozen part under a
trained one twice, a frozen part under nothing once. Not counted: activations computed again, tokens of documents that
teach nothing (fillers) and their images, the upper half of causal attention, norms and other work without products
(under 1 % at the published sizes). A shared prompt and a shared image count once. DoRA's row norms and the class token
of DINOv2 are left out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from medmo_core.batch import Batch
from medmo_core.decoders.qwen3 import DecoderLayer
from medmo_core.models.medmo import MedMO
from medmo_core.models.targets import learned_positions
from medmo_core.modules.blocks import blocks_of

PEAK_FLOPS = {"H200": 790e12, "H100 80GB HBM3": 790e12, "A100": 312e12}
"""Dense bf16 operations per second by a part of the device's name: measured on H200 (770 to 800), whose chip the H100
with HBM3 has too; A100 from its data sheet. A device that is not listed has no MFU."""


def peak_flops(device: torch.device) -> float | None:
    """Return the dense bf16 peak of a device, or None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def teaching_documents(batch: Batch) -> Tensor:
    """Say which documents of a batch on the host have a token to learn or are the prompt of one that has: (n,) bool."""
    teaches = torch.zeros(batch.num_documents, dtype=torch.bool)
    teaches[batch.document_of(learned_positions(batch))] = True
    if batch.prompt_of is not None:
        prompts = batch.prompt_of[teaches]
        teaches[prompts[prompts >= 0]] = True
    return teaches


@dataclass(frozen=True)
class BatchWork:
    """Work of a batch, in units that cost the same.

    Attributes:
        documents: documents that teach; a beginning that others share does not count as one.
        tokens: tokens of these documents and their prompts.
        pairs: tokens times the tokens that each sees, causally.
        learned: tokens in the loss.
        visual_tokens: visual tokens of their images, each image once.
        patches: patches of these images, per encoder.
        patch_pairs: patches times the patches that each sees, per encoder.
        patch_values: numbers in the patches, per encoder.
    """

    documents: int
    tokens: int
    pairs: int
    learned: int
    visual_tokens: int = 0
    patches: dict[str, int] = field(default_factory=dict)
    patch_pairs: dict[str, int] = field(default_factory=dict)
    patch_values: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch, model: MedMO) -> "BatchWork":
        """Count a batch on the host."""
        teaches = teaching_documents(batch)
        lengths = batch.cu_seqlens.diff().long()
        before = torch.zeros_like(lengths)
        if batch.prompt_of is not None:
            before = torch.where(batch.prompt_of >= 0, lengths[batch.prompt_of], before)
        seen = lengths * (lengths + 1) // 2 + lengths * before
        images = _taught_images(batch, model, teaches)
        patches, pairs, values = {}, {}, {}
        for name, grids in batch.image_grid_thw.items():
            frames, area = grids[images, 0], grids[images, 1:].prod(dim=1)
            patches[name] = int((frames * area).sum())
            pairs[name] = int((frames * area * area).sum())  # a frame sees itself alone
            values[name] = patches[name] * batch.patches[name].shape[1]
        prompts = set() if batch.prompt_of is None else {*batch.prompt_of[teaches].tolist()} - {-1}
        return cls(
            documents=int(teaches.sum()) - len(prompts),
            tokens=int(lengths[teaches].sum()),
            pairs=int(seen[teaches].sum()),
            learned=learned_positions(batch).numel(),
            visual_tokens=patches.get(model.primary_encoder, 0) // model.merge_size**2,
            patches=patches,
            patch_pairs=pairs,
            patch_values=values,
        )

    @classmethod
    def planned(cls, model: MedMO, *, grid: tuple[int, int], text_tokens: int, learned: int) -> "BatchWork":
        """Describe one document with one still image, for an estimate.

        Args:
            model: whose patches and merging count.
            grid: rows and columns of visual tokens.
            text_tokens: tokens beside the visual ones.
            learned: how many of them are in the loss.
        """
        visual = grid[0] * grid[1]
        tokens = visual + text_tokens
        specs = model.encoder.specs
        patches = {name: visual * spec.merge_size**2 for name, spec in specs.items()}
        return cls(
            documents=1,
            tokens=tokens,
            pairs=tokens * (tokens + 1) // 2,
            learned=learned,
            visual_tokens=visual,
            patches=patches,
            patch_pairs={name: count**2 for name, count in patches.items()},
            patch_values={name: count * specs[name].still_width for name, count in patches.items()},
        )


def _taught_images(batch: Batch, model: MedMO, teaches: Tensor) -> Tensor:
    """Return the images that documents which teach show: indices into the grids."""
    grids = batch.image_grid_thw.get(model.primary_encoder)
    if grids is None:
        return torch.zeros(0, dtype=torch.int64)
    if bool(teaches.all()):
        return torch.arange(len(grids))
    shown = torch.arange(len(grids)) if batch.image_index is None else batch.image_index
    tokens = grids.prod(dim=1)[shown] // model.merge_size**2
    config = model.config
    is_visual = (batch.input_ids == config.image_token_id) | (batch.input_ids == config.video_token_id)
    firsts = is_visual.nonzero().squeeze(1)[tokens.cumsum(0) - tokens]
    return shown[teaches[batch.document_of(firsts)]].unique()


class UsefulFlops:
    """Cost batches of one model, with what trains in it when this is made.

    Args:
        model: its linear layers may be quantised, adapted, compiled or sharded.
    """

    def __init__(self, model: MedMO) -> None:
        self.per_patch: dict[str, float] = {}
        self.per_patch_pair: dict[str, float] = {}
        self.per_patch_value: dict[str, float] = {}
        flows = False  # whether a gradient is wanted of what comes out
        towers = getattr(model.encoder, "towers", {model.encoder.name: model.encoder})
        for name, tower in towers.items():
            flows = self._add_tower(name, cast(nn.Module, tower), tower.embed_dim) or flows
        linear, _, flows = _cost(model.projector, flows)
        self.per_visual_token = linear
        flows = flows or model.decoder.embed_tokens.weight.requires_grad
        self.per_token = self.per_pair = self.per_row = 0.0
        layers = cast(Sequence[DecoderLayer], list(model.decoder.layers))
        for layer in layers:
            attention = layer.self_attn
            inside, products, flows = _cost(layer, flows)
            self.per_pair += 4 * attention.num_heads * attention.head_dim * products
            # The last layer mixes and transforms only the rows whose next token is learned.
            late = layer is layers[-1] and model.encoder.num_deepstack < len(layers)
            rows = sum(_linear(part, flows) for part in (attention.o_proj, layer.mlp)) if late else 0.0
            self.per_row += rows
            self.per_token += inside - rows
        flows = flows or any(p.requires_grad for p in model.decoder.norm.parameters())
        head = model.head_weight
        vocab, width = model.config.text.vocab_size, model.config.text.hidden_size
        self.per_row += 2 * vocab * width * (1 + flows + head.requires_grad)

    def _add_tower(self, name: str, tower: nn.Module, width: int) -> bool:
        """Add one vision encoder of a width; returns whether anything in it trains."""
        blocks = blocks_of(tower)
        in_blocks = {id(module) for block in blocks for module in block.modules()}
        rest = [module for module in tower.modules() if id(module) not in in_blocks]
        flows = any(p.requires_grad for m in rest for p in m.parameters(recurse=False))
        stems = [m for m in rest if isinstance(m, nn.Conv2d | nn.Conv3d | nn.Linear)]
        self.per_patch[name] = self.per_patch_pair[name] = self.per_patch_value[name] = 0.0
        for stem in stems:  # pixels need no gradient; a 3-D kernel is collapsed for stills
            outputs = stem.out_features if isinstance(stem, nn.Linear) else stem.out_channels
            self.per_patch_value[name] += 2 * outputs * (1 + stem.weight.requires_grad)
        for block in blocks:
            linear, products, flows = _cost(block, flows)
            self.per_patch[name] += linear
            self.per_patch_pair[name] += 4 * width * products
        return flows

    def of(self, work: BatchWork) -> float:
        """Return the operations of some work, forward and backward."""
        total = work.tokens * self.per_token + work.pairs * self.per_pair + work.learned * self.per_row
        total += work.visual_tokens * self.per_visual_token
        for name, patches in work.patches.items():
            total += patches * self.per_patch[name] + work.patch_pairs[name] * self.per_patch_pair[name]
            total += work.patch_values[name] * self.per_patch_value[name]
        return total


def _cost(block: nn.Module, flows: bool) -> tuple[float, float, bool]:
    """Cost one block, given whether its input needs a gradient.

    Returns:
        Operations per row of its linear layers; how often its products without weights (attention) count; whether its
        output needs a gradient.
    """
    flows = flows or any(p.requires_grad for p in block.parameters())
    return _linear(block, flows), 1 + 2 * flows, flows


def _linear(module: nn.Module, flows: bool) -> float:
    layers: Iterable[nn.Linear] = (m for m in module.modules() if isinstance(m, nn.Linear))
    return sum(2 * m.in_features * m.out_features * (1 + flows + m.weight.requires_grad) for m in layers)
