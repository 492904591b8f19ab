"""A step of decoding launches the same for every token that its caches have room for, and the host reads nothing."""

from collections.abc import Callable

import pytest
from torch import Tensor

from benchmarks.report import decode_launches
from benchmarks.report.decode_launches import FakeDecoding
from benchmarks.report.page_section import section_of
from medmo_core.generation.kv_cache import GROWTH, KVCache
from medmo_core.models import PRESETS
from medmo_kernels.decode_attention import decode_attention

pytest.importorskip("triton")
TEXT = PRESETS["debug"].text
TORCH = ["_fused_rms_norm", "mm", "mm", "mm"], ["mm", "add", "_fused_rms_norm", "mm", "mm", "silu", "mul", "mm", "add"]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "copied"])
@pytest.mark.parametrize("prompt", [40, 1700])
def test_no_launch_depends_on_the_token(shared: bool, prompt: int) -> None:
    """Ops, shapes, strides, grids, numbers handed to kernels, buffers: all equal, until the columns are filled."""
    decoding = FakeDecoding(TEXT, shared=shared, rows=4, prompt=prompt)
    first = last = decoding.step().events
    width = decoding.cache.width
    for _ in range(GROWTH - 4):
        last = decoding.step().events
    assert decoding.cache.width == width + GROWTH - 4 and last == first
    assert {event.kind for event in first} == {"kernel", "op", "memory"}


@pytest.mark.parametrize(("prompt", "join"), [(40, []), (1700, ["decode_join_kernel"])], ids=["one part", "parts"])
def test_launches_of_a_step_are_counted(prompt: int, join: list[str]) -> None:
    layer = [*TORCH[0], "_cache_kernel", "decode_parts_kernel", *join, *TORCH[1]]
    around = ["_to_copy", "index", "mul", "cos", "sin", "embedding"], ["_fused_rms_norm", "add_"]
    assert FakeDecoding(TEXT, prompt=prompt).step().launches == [*around[0], *layer, *layer, *around[1]]
    assert len(layer) <= 16


def by_host(self: KVCache, layer: int, q_BHD: Tensor) -> Tensor:
    return decode_attention(q_BHD, *(x[:, :, : self.width + 1] for x in self.own[layer]))


def by_reading(self: KVCache, layer: int, q_BHD: Tensor) -> Tensor:
    stop = int(self._stops.max().item())
    return decode_attention(q_BHD, *(x[:, :, :stop] for x in self.own[layer]))


def test_a_step_that_depends_on_the_token_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_steps(look_back: Callable[..., Tensor]) -> bool:
        monkeypatch.setattr(KVCache, "look_back", look_back)
        decoding = FakeDecoding(TEXT, rows=2)
        return decoding.step().events == decoding.step().events

    assert not two_steps(by_host)
    with pytest.raises(RuntimeError, match="meta"):
        two_steps(by_reading)


def test_the_page_has_the_counts() -> None:
    page = section_of(decode_launches.PAGE, "benchmarks.report.decode_launches")
    assert page == decode_launches.section().strip(), "python -m benchmarks.report.decode_launches --write"
