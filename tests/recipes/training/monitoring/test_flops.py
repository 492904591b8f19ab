"""Useful operations: equal to what PyTorch counts, apart from what is called useless, which is taken out by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from medmo_core.batch import IGNORE_INDEX, Batch
from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.inference.kit import Kit
from medmo_kernels import runtime
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.loading.sources import load_mixture
from medmo_recipes.training.model.kit import load_kit
from medmo_recipes.training.model.trainable import make_trainable
from medmo_recipes.training.monitoring import flops
from medmo_recipes.training.monitoring.flops import BatchWork, UsefulFlops, peak_flops


def kit_of(encoder: str = "qwen3_vl") -> Kit:
    change = {} if encoder == "qwen3_vl" else {"encoder": encoder, "encoder_size": "debug"}
    return load_kit(CONFIGS["debug_instruct"]().change(model=change), "cpu")


def items_of(kit: Kit, count: int) -> list[Document]:
    config = CONFIGS["debug_instruct"]()
    mixture = load_mixture(config.data, seed=0)
    return [kit.processor.encode(mixture.draw(number)) for number in range(count)]


def counted(kit: Kit, batch: Batch) -> int:
    """What PyTorch counts in the reference implementation, whose products it all sees."""
    with FlopCounterMode(display=False) as counter:
        kit.model.loss(batch, "sum").backward()
    return counter.get_total_flops()


def as_counted(work: BatchWork, *, doubled: bool) -> BatchWork:
    """The work with what is not useful: whole squares in causal attention, and every still as a pair of frames."""
    assert work.documents == 1, "the reference looks at all pairs of a batch"
    values = {name: (2 if doubled else 1) * number for name, number in work.patch_values.items()}
    return replace(work, pairs=work.tokens**2, patch_values=values)


@pytest.mark.parametrize(
    ("words", "tolerance"),
    [
        (("all",), 0.0),
        (("projector",), 0.0),  # frozen encoder once, projector under nothing, frozen decoder twice
        (("decoder",), 0.0),  # frozen encoder and projector once
        (("encoder",), 0.02),  # the rest: an input in the first block that trains counts as if it needed a gradient
        (("model.language_model.layers.1",), 0.05),
    ],
)
def test_formulas_equal_pytorchs_counter(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], tolerance: float
) -> None:
    monkeypatch.setenv(runtime.SWITCH, "reference")
    kit = kit_of()
    make_trainable(kit.model, words)
    batch = pack(items_of(kit, 1))
    work, costs = BatchWork.of(batch, kit.model), UsefulFlops(kit.model)
    assert costs.of(as_counted(work, doubled=True)) == pytest.approx(counted(kit, batch), rel=tolerance + 1e-9)
    assert costs.of(work) < costs.of(as_counted(work, doubled=True))


@pytest.mark.parametrize("encoder", ["siglip2", "dinov2", "fused"])
def test_other_encoders_are_costed_too(monkeypatch: pytest.MonkeyPatch, encoder: str) -> None:
    monkeypatch.setenv(runtime.SWITCH, "reference")
    kit = kit_of(encoder)
    batch = pack(items_of(kit, 1))
    work = as_counted(BatchWork.of(batch, kit.model), doubled=False)
    found, expected = counted(kit, batch), UsefulFlops(kit.model).of(work)
    # DINOv2's class token is left out: one in nine rows at this size, one in thousands at the real one.
    assert expected == pytest.approx(found, rel=0.03)


def test_a_wrong_formula_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.SWITCH, "reference")
    kit = kit_of()
    batch = pack(items_of(kit, 1))
    work, costs = as_counted(BatchWork.of(batch, kit.model), doubled=True), UsefulFlops(kit.model)
    costs.per_pair *= 0.5
    with pytest.raises(AssertionError):
        assert costs.of(work) == pytest.approx(counted(kit, batch), rel=0.02)


def test_documents_add_up_and_fillers_cost_nothing() -> None:
    kit = kit_of()
    items = items_of(kit, 4)
    apart = [BatchWork.of(pack([item]), kit.model) for item in items]
    costs = UsefulFlops(kit.model)
    total = sum(costs.of(work) for work in apart)
    together = BatchWork.of(pack(items), kit.model)
    assert costs.of(together) == pytest.approx(total) and together.documents == 4
    labels = items[1].labels
    assert labels is not None
    filler = replace(items[1], labels=np.full_like(labels, IGNORE_INDEX))
    for order in ([items[0], filler], [filler, items[0]]):
        assert BatchWork.of(pack(order), kit.model) == apart[0]
    assert costs.of(BatchWork.of(pack([filler]), kit.model)) == 0


def test_what_is_shared_counts_once() -> None:
    kit = kit_of()
    item = items_of(kit, 1)[0]
    batch, tree = pack([item, item]), pack([item, item], share_prefixes=True)
    one, two, shared = (BatchWork.of(b, kit.model) for b in (pack([item]), batch, tree))
    assert two.patches == shared.patches == one.patches  # the image is the same array
    assert tree.prompt_of is not None and shared.documents == 2 and shared.learned == two.learned
    prompt = two.tokens - shared.tokens
    assert 0 < prompt < one.tokens
    # Every token of either answer sees the prompt and what stands before it; the prompt's own pairs are there once.
    assert shared.pairs == two.pairs - prompt * (prompt + 1) // 2


def test_an_estimate_equals_a_batch_of_that_shape() -> None:
    kit = kit_of()
    batch = pack(items_of(kit, 1))
    work = BatchWork.of(batch, kit.model)
    _, height, width = batch.image_grid_thw["qwen3_vl"][0].tolist()
    planned = BatchWork.planned(
        kit.model,
        grid=(height // 2, width // 2),
        text_tokens=work.tokens - work.visual_tokens,
        learned=work.learned,
    )
    assert planned == work


def test_published_sizes() -> None:
    """Six operations per parameter and token, as everyone counts, plus attention."""
    model = load_kit(CONFIGS["medmo_4b_align"](), "meta").model
    costs = UsefulFlops(model)
    layers = sum(p.numel() for n, p in model.decoder.named_parameters() if n.startswith("layers") and p.ndim == 2)
    head = model.head_weight.numel()
    assert costs.per_token + costs.per_row == pytest.approx(6 * (layers + head))


def test_peaks_are_known_or_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(torch.device("cpu")) is None
    for name, peak in (("NVIDIA H200", 790e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA H100 PCIe", None)):
        monkeypatch.setattr(flops.torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda", 0)) == peak
