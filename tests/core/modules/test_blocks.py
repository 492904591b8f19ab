"""Blocks that are computed again or compiled: equal results, less kept, one graph for all lengths."""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from medmo_core.batch import Batch
from medmo_core.models import MedMO
from medmo_core.modules import blocks as blocks_module
from medmo_core.modules.blocks import blocks_of, set_forward


def make_model() -> MedMO:
    torch.manual_seed(0)
    return MedMO.from_config("debug", dtype=torch.float64)


def make_batch(lengths: Sequence[int], num_images: int = 2) -> Batch:
    """Documents of text, the first of which show images of four visual tokens."""
    generator = torch.Generator().manual_seed(sum(lengths))
    image_token = MedMO.from_config("debug", device="meta").config.image_token_id
    documents = [torch.randint(0, 300, (length,), generator=generator) for length in lengths]
    for document in documents[:num_images]:
        document[1:5] = image_token
    ids = torch.cat(documents)
    patches = torch.randint(0, 256, (16 * num_images, 768), dtype=torch.uint8, generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths]).expand(3, -1)
    bounds = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    grids = torch.tensor([[1, 4, 4]] * num_images)
    return Batch(ids, ids.clone(), positions, bounds, {"qwen3_vl": patches}, {"qwen3_vl": grids})


def gradients(model: MedMO, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    model.loss(batch, "sum").backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_gradients(model: MedMO, batch: Batch) -> None:
    """Compare with the same weights run plainly."""
    plain = copy.deepcopy(model)
    for block in blocks_of(plain):
        block.__dict__.pop("forward", None)
    expected = gradients(plain, batch)
    for name, gradient in gradients(model, batch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-12, atol=1e-12, msg=name)


class Calls(TorchDispatchMode):
    """Count the ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def cost(model: MedMO, batch: Batch) -> tuple[int, Counter[str]]:
    """Return the bytes that a loss keeps for its backward pass, and how often each op runs in both passes."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with Calls() as calls:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.loss(batch, "sum")
        loss.backward()
    return sum(size for pointer, size in kept.items() if pointer not in parameters), calls.counts


@pytest.mark.parametrize(("text", "vision"), [("all", "nothing"), ("nothing", "all"), ("selected", "selected")])
def test_recomputed_blocks_give_the_same_gradients(text: Any, vision: Any) -> None:
    model = make_model()
    model.checkpoint_activations(text, vision)
    assert_equal_gradients(model, make_batch((9, 14, 7)))


def test_each_part_is_recomputed_as_it_is_told() -> None:
    """What is kept and what runs twice: all, nothing, or all but matrix products and attention."""
    model, batch = make_model(), make_batch((9, 9, 9))  # one call of attention a layer
    attend = "aten::_scaled_dot_product_flash_attention_for_cpu"
    kept, ran = {}, {}
    for text, vision in (("nothing", "nothing"), ("all", "nothing"), ("all", "all"), ("selected", "selected")):
        model.checkpoint_activations(text, vision)  # type: ignore[arg-type]
        kept[text, vision], ran[text, vision] = cost(model, batch)
    plain, both, selected = (ran[mode, mode] for mode in ("nothing", "all", "selected"))
    assert plain[attend] == 4 and both[attend] == 8  # two layers, two blocks
    assert ran["all", "nothing"][attend] == 6
    assert selected[attend] == 4
    products = Counter({name: plain[name] for name in ("aten::mm", "aten::addmm")})
    assert Counter({name: selected[name] for name in products}) == products
    assert both["aten::mm"] > products["aten::mm"] and both["aten::addmm"] > products["aten::addmm"]
    assert selected["aten::silu"] == 2 * plain["aten::silu"] == 4
    assert kept["all", "all"] < kept["all", "nothing"] < kept["nothing", "nothing"]
    # SAC keeps its own store beside what the graph holds: only the latter is seen here.
    assert kept["selected", "selected"] < kept["nothing", "nothing"]


def test_the_packed_attention_op_is_kept() -> None:
    """What serves attention on a GPU; on the CPU the op runs its definition."""
    query = torch.randn(6, 2, 8, requires_grad=True)
    bounds = torch.tensor([0, 2, 6], dtype=torch.int32)

    def attend(x: Tensor) -> Tensor:
        return torch.ops.medmo_kernels.attention(x.sin(), x, x, bounds, None, None, None, True, 0.3)[0].cos()

    def contexts() -> Any:
        return create_selective_checkpoint_contexts(blocks_module._policy)

    with Calls() as calls:
        checkpoint(attend, query, use_reentrant=False, context_fn=contexts).sum().backward()
    assert calls.counts["medmo_kernels::attention"] == 1
    assert calls.counts["aten::sin"] == 2 + 1  # once more, and in the gradient of cos


def test_bool_form_and_back() -> None:
    model = make_model()
    model.checkpoint_activations(True)
    assert all("forward" in block.__dict__ for block in blocks_of(model))
    model.checkpoint_activations(False)
    assert not any("forward" in block.__dict__ for block in blocks_of(model))
    assert len(blocks_of(model.decoder)) == len(blocks_of(model.model.visual)) == 2


def test_a_copy_runs_on_its_own_weights() -> None:
    model, batch = make_model(), make_batch((9, 14))
    model.checkpoint_activations()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(gradient.any() for gradient in gradients(twin, batch).values())


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def check_one_graph() -> None:
    """Run blocks of both kinds at several lengths; a graph that was made for the first serves all."""
    model = make_model()
    blocks = [model.encoder.blocks[0], *model.decoder.layers]  # type: ignore[attr-defined]
    set_forward(blocks, compiled=True, backend="eager")
    assert_equal_gradients(model, make_batch((9, 14, 7)))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    for lengths, recompute in (((30, 12), "nothing"), ((11, 12, 13, 20), "all"), ((8, 9), "selected")):
        set_forward(blocks, recompute=recompute, compiled=True, backend="eager")  # type: ignore[arg-type]
        assert_equal_gradients(model, make_batch(lengths))
        assert counters["stats"]["unique_graphs"] == graphs


def test_compiled_blocks_have_one_graph_for_all_lengths(fresh_compiler: None) -> None:
    check_one_graph()


def test_compiled_forward_and_backward(fresh_compiler: None) -> None:
    """Through the compiler's split into forward and backward, with its own choice of what is kept."""
    model = make_model()
    set_forward(blocks_of(model.model.visual)[:1], recompute="selected", compiled=True, backend="aot_eager")
    assert_equal_gradients(model, make_batch((9, 14, 7)))


def test_a_graph_for_every_length_is_noticed(fresh_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, dynamic, backend: compile_(run, dynamic=False, backend=backend))
    with pytest.raises(AssertionError):
        check_one_graph()
