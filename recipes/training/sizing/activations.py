"""Activations that a forward pass keeps for the backward pass, op by op: each keeps what its gradient formula reads.

A tensor that several ops keep, or that one op makes and another keeps, is one: tensors are counted under names. The CPU
and CUDA run other code (torch's norms in fp32, SDPA with rotated copies and plain products there; Triton and Liger
here) and keep other tensors. Counted is the Qwen3-VL family; other vision encoders as plain transformers of their
widths.

Shapes: T tokens, R learned rows, N patches, M visual tokens, E and D widths, I and F feed-forward widths.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import Tensor, nn

from medmo_core.batch import Batch
from medmo_core.choices import Recompute
from medmo_core.decoders.qwen3 import DecoderLayer
from medmo_core.models.medmo import MedMO
from medmo_core.models.targets import learned_positions
from medmo_core.modules.blocks import blocks_of
from medmo_core.modules.projector import PatchMerger

from ..distributed.sharding import trains
from .ledger import Device, Ledger, MemoryStage


@dataclass(frozen=True)
class BatchShape:
    """Facts of one packed batch that decide its memory."""

    tokens: int
    learned: int
    """Rows whose next token is learned."""
    patches: dict[str, int] = field(default_factory=dict)
    """Encoder -> patches."""
    uniform: bool = True
    """Whether all documents are equally long: on the CPU attention then works in place."""
    uniform_images: bool = True
    """The same for the patches of the images."""

    @classmethod
    def of(cls, batch: Batch) -> "BatchShape":
        """Describe a batch on the host."""
        lengths = batch.cu_seqlens.diff().unique()
        frames = [grids[:, 1:].prod(1).unique() for grids in batch.image_grid_thw.values()]
        return cls(
            tokens=batch.num_tokens,
            learned=learned_positions(batch).numel(),
            patches={name: len(rows) for name, rows in batch.patches.items()},
            uniform=len(lengths) == 1 and batch.prompt_of is None,
            uniform_images=all(len(sizes) == 1 for sizes in frames),
        )

    @classmethod
    def planned(cls, model: MedMO, *, pixels: int, text_tokens: int, learned: int) -> "BatchShape":
        """Describe one document with one still image of so many pixels."""
        patches = {}
        for name, spec in model.encoder.specs.items():
            side = round(pixels**0.5 / (spec.patch_size * spec.merge_size)) * spec.merge_size
            patches[name] = side * side
        visual = patches[model.primary_encoder] // model.merge_size**2
        return cls(tokens=visual + text_tokens, learned=learned, patches=patches)

    def scaled(self, tokens: float) -> "BatchShape":
        """Return the same mixture with so many tokens."""
        ratio = tokens / self.tokens
        return replace(
            self,
            tokens=round(tokens),
            learned=round(self.learned * ratio),
            patches={name: round(count * ratio) for name, count in self.patches.items()},
        )

    def with_completions(self, completions: int, length: int) -> "BatchShape":
        """Return these prompts with so many sampled completions of a length, which are all that is learned."""
        learned = completions * length
        return replace(self, tokens=self.tokens + learned, learned=learned, uniform=False)


def gradient_bytes(parameters: Iterable[Tensor]) -> int:
    """Return the bytes of the gradients of those that train."""
    return sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)


def decoder_layer(
    layer: DecoderLayer, tokens: int, rows: int, shape: BatchShape, ledger: Ledger, recompute: Recompute, name: str
) -> MemoryStage:
    """Count one decoder block; the last one transforms only `rows` of its tokens."""
    attention, mlp = layer.self_attn, layer.mlp
    width = attention.q_norm.weight.shape[0]
    heads, kv_heads = attention.num_heads, attention.num_kv_heads
    dim = layer.input_layernorm.weight.shape[0]
    hidden = _base(mlp.gate_proj).out_features
    if ledger.flows or trains(layer):
        ledger.rms_norm(layer.input_layernorm, "x", tokens, dim)
        for projection, result in ((attention.q_proj, "q"), (attention.k_proj, "k"), (attention.v_proj, "v")):
            ledger.linear(projection, "x normed", result, tokens)
        ledger.keep("q", tokens * heads * width)
        ledger.keep("k", tokens * kv_heads * width)
        ledger.keep("q turned", tokens * heads * width)
        ledger.keep("k turned", tokens * kv_heads * width)
        ledger.keep("v", tokens * kv_heads * width)
        ledger.keep("mixed", tokens * heads * width)
        ledger.keep("lse", tokens * heads, 4)
        ledger.products |= {key: ledger.read[key] for key in ("mixed", "lse")}
        source = "mixed"
        if rows < tokens or (ledger.device == "cpu" and not shape.uniform):
            source = "mixed, in place"
        ledger.linear(attention.o_proj, source, "o", rows)
        ledger.rms_norm(layer.post_attention_layernorm, "y", rows, dim)
        ledger.linear(mlp.gate_proj, "y normed", "gate", rows)
        ledger.linear(mlp.up_proj, "y normed", "up", rows)
        ledger.keep("gate", rows * hidden)
        ledger.keep("up", rows * hidden)
        if ledger.device == "cpu":  # Liger computes it again
            ledger.keep("silu(gate)", rows * hidden)
        ledger.linear(mlp.down_proj, "gated", "down", rows)
    stage = ledger.stage("decoder", name, recompute, "x", tokens * dim)
    if stage.kept:
        # In the feed-forward part: the gradients of the block's output, of the product and of its two factors, of which
        # one takes the place of the product where that was kept. Liger writes over the factors.
        factors = 1 if ledger.device == "cuda" else 2 if "gated" in ledger.read else 3
        feeding = (rows * dim + factors * rows * hidden) * ledger.width
        # In attention: those of the block's input, of what attention made and of its three inputs; what the
        # feed-forward part kept is gone, and its weights have their gradients.
        fed = ("y", "y wide", "y normal", "y normed", "gate", "up", "silu(gate)", "gated")
        gone = sum(ledger.read.get(key, 0) for key in fed)
        mixing = (tokens * dim + 2 * tokens * (heads + kv_heads) * width) * ledger.width - gone
        done = gradient_bytes([*mlp.parameters(), *attention.o_proj.parameters()])
        stage.working = max(feeding, mixing + done)
    stage.gradients = gradient_bytes(layer.parameters())
    return stage


VISION_LAYERS = {
    ("qkv", "q_proj", "k_proj", "v_proj", "query", "key", "value"): "x normed",
    ("proj", "out_proj", "dense"): "mixed",
    ("linear_fc1", "fc1", "weights_in"): "y normed",
    ("linear_fc2", "fc2", "weights_out"): "gelu",
}
"""Linear layers of the families of vision blocks -> what they multiply."""


def vision_block(
    block: nn.Module,
    patches: int,
    dim: int,
    turned: bool,
    shape: BatchShape,
    ledger: Ledger,
    recompute: Recompute,
    name: str,
) -> MemoryStage:
    """Count one block of a vision transformer."""
    hidden = 0
    flows = ledger.flows or trains(block)
    if flows:
        ledger.keep("x", patches * dim)
        ledger.keep("y", patches * dim)
        ledger.keep("mixed", patches * dim)
        if turned and ledger.device == "cpu":  # the kernel turns queries and keys on the way
            ledger.keep("q and k turned", 2 * patches * dim)
    for path, module in block.named_modules():
        source = next((s for names, s in VISION_LAYERS.items() if path.rsplit(".", 1)[-1] in names), None)
        if source is None or not hasattr(_base(module), "in_features"):
            continue
        if source == "y normed":
            hidden = _base(module).out_features
        if not flows:
            continue
        if source == "mixed" and ledger.device == "cpu" and not shape.uniform_images:
            source = "mixed, in place"
        ledger.linear(module, source, path, patches)
        if source in ("x normed", "y normed"):  # attention and GELU read what these make
            ledger.keep(path, patches * _base(module).out_features)
    if flows:
        ledger.products["mixed"] = ledger.read["mixed"]
    stage = ledger.stage("vision", name, recompute, "x", patches * dim)
    widened = 1 if "gelu" in ledger.read else 2  # gradients of both sides of GELU, one in the place of its result
    stage.working = (patches * dim + widened * patches * hidden) * ledger.width if stage.kept else 0
    stage.gradients = gradient_bytes(block.parameters())
    return stage


def _merger(merger: PatchMerger, patches: int, shared: bool, ledger: Ledger) -> None:
    """Count one merger of the projector; the features of a tap are the input of the vision block after it."""
    merged, fc1 = merger.merged_dim, f"{id(merger)} "
    tokens = patches // merger.merge_size**2
    if not (ledger.flows or trains(merger)):
        return
    if not shared:
        ledger.keep(fc1 + "features", tokens * merged)
    ledger.keep(fc1 + "hidden", tokens * merged)
    if ledger.device == "cpu" or not merger.is_plain:  # the kernel computes norm and GELU again
        ledger.linear(merger.linear_fc1, fc1 + "normed", fc1 + "hidden", tokens)
        ledger.linear(merger.linear_fc2, fc1 + "gelu", fc1 + "out", tokens)


def _base(layer: Any) -> Any:
    """Return a linear layer itself, without its adapter."""
    return getattr(layer, "base_layer", layer)


def projector(model: MedMO, shape: BatchShape, ledger: Ledger) -> MemoryStage:
    """Count the projector: its main merger and those of the taps."""
    stage = MemoryStage("projector", "projector")
    patches = shape.patches.get(model.primary_encoder, 0)
    if not patches:
        return stage
    mergers = [model.projector.merger, *model.projector.deepstack_merger_list]
    for index, merger in enumerate(mergers):
        _merger(cast(PatchMerger, merger), patches, index > 0, ledger)
    stage.kept = sum(ledger.read.values())
    first = model.projector.merger
    tokens, dim = patches // first.merge_size**2, model.config.text.hidden_size
    # The gradients of what every merger has made wait for the first of them.
    stage.working = (tokens * dim * len(mergers) + 2 * tokens * first.merged_dim) * ledger.width if stage.kept else 0
    stage.gradients = gradient_bytes(model.projector.parameters())
    return stage


def head(model: MedMO, rows: int, ledger: Ledger, dense_logits: int, fused: bool) -> MemoryStage:
    """Count the final norm, the head and the loss, which Liger fuses or which goes through chunks of logits."""
    vocab, dim = model.head_weight.shape
    weight_bytes = vocab * dim * ledger.width
    is_trained = model.head_weight.requires_grad
    ledger.rms_norm(model.decoder.norm, "x", rows, dim)
    stage = MemoryStage("head", "head")
    chunk = min(rows, max(1, dense_logits // vocab))
    if fused:
        # Liger: gradients come in the forward pass, a chunk of rows at a time, those of the weight in fp32: the sum, a
        # chunk's product, and that widened; then the sum in the type of the weight is kept beside that of the rows.
        chunk = min(rows, 1 << (max(1, -(-rows // -(-vocab // dim))) - 1).bit_length())
        stage.kept = rows * dim * ledger.width
        stage.working = chunk * vocab * ledger.width
        if is_trained:
            stage.kept += weight_bytes
            stage.working += vocab * dim * 8
    else:
        ledger.keep("hidden", rows * dim)
        # A chunk's log-softmax and two gradients of it, in fp32. The weight's gradients of two chunks, and their sum.
        stage.working = 3 * chunk * vocab * ledger.wide
        if chunk < rows and is_trained:
            stage.working = max(stage.working + weight_bytes, 3 * weight_bytes)
    stage.kept += sum(ledger.read.values())
    stage.gradients = gradient_bytes(model.decoder.norm.parameters()) + weight_bytes * is_trained
    return stage


def stages(
    model: MedMO,
    shape: BatchShape,
    *,
    device: Device,
    width: int,
    recompute_text: Recompute,
    recompute_vision: Recompute,
    dense_logits: int,
    fused_head: bool,
) -> list[MemoryStage]:
    """Count a forward pass, in its order.

    Args:
        model: model of which what trains has been chosen; may be on the meta device.
        shape: shape of the batch.
        device: kind of device whose code runs.
        width: bytes of an activation.
        recompute_text: recomputation in the decoder's blocks.
        recompute_vision: recomputation in the vision encoder's blocks.
        dense_logits: logits that the plain head makes at a time.
        fused_head: whether Liger's head computes the loss.
    """
    found: list[MemoryStage] = []
    flows = False  # whether a gradient is wanted of what comes out

    def ledger() -> Ledger:
        return Ledger(width, device, flows)

    towers: dict[str, Any] = getattr(model.encoder, "towers", {model.encoder.name: model.encoder})
    for name, tower in towers.items():
        patches = shape.patches.get(name, 0)
        if not patches:
            continue
        tower_flows = False
        blocks = blocks_of(tower)
        inside = {id(p) for block in blocks for p in block.parameters()}
        rest = [p for p in tower.parameters() if id(p) not in inside]
        stem = MemoryStage("vision", f"{name} patches", gradients=gradient_bytes(rest))
        if stem.gradients:
            stem.kept = patches * tower.specs[name].still_width  # uint8
            stem.working = patches * tower.specs[name].still_width * 4
            tower_flows = True
        found.append(stem)
        for index, block in enumerate(blocks):
            book = Ledger(width, device, tower_flows)
            turned = name == "qwen3_vl"
            found.append(
                vision_block(block, patches, tower.embed_dim, turned, shape, book, recompute_vision, f"{name} {index}")
            )
            tower_flows = tower_flows or trains(block)
        flows = flows or tower_flows
    found.append(projector(model, shape, ledger()))
    flows = flows or (bool(shape.patches) and trains(model.projector))
    found.append(_embedding(model, shape, width, flows))
    flows = flows or model.decoder.embed_tokens.weight.requires_grad
    layers = cast(Sequence[DecoderLayer], list(model.decoder.layers))
    for index, layer in enumerate(layers):
        late = index == len(layers) - 1 and model.encoder.num_deepstack < len(layers)
        rows = shape.learned if late else shape.tokens
        book = ledger()
        found.append(decoder_layer(layer, shape.tokens, rows, shape, book, recompute_text, f"layer {index}"))
        flows = flows or trains(layer)
    found.append(head(model, shape.learned, ledger(), dense_logits, fused_head))
    return found


def _embedding(model: MedMO, shape: BatchShape, width: int, flows: bool) -> MemoryStage:
    """Count the embedding, what is written into it, and the rotary tables.

    The gradient of a tied embedding is the sum of two, which autograd writes to a third place.
    """
    weight, decoder = model.decoder.embed_tokens.weight, model.decoder
    stage = MemoryStage("decoder", "embedding", kept=4 * shape.tokens * decoder.head_dim)
    if flows:  # the visual tokens, and what deepstack adds to them
        visual = shape.patches.get(model.primary_encoder, 0) // model.merge_size**2
        stage.kept += (1 + model.encoder.num_deepstack) * visual * weight.shape[1] * width
    if weight.requires_grad:
        size = weight.numel() * weight.element_size()
        stage.working = shape.tokens * weight.shape[1] * width
        if model.config.tie_word_embeddings:
            stage.working += 2 * size
        else:
            stage.gradients = size
    return stage
