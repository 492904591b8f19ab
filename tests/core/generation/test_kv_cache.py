"""The cache: rows see their prompt and what they wrote, shared or copied, while rows and prompts come and go."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from medmo_core.batch import Batch
from medmo_core.generation import kv_cache
from medmo_core.generation.kv_cache import KVCache, Place
from medmo_core.models import PRESETS, MedMO
from medmo_kernels import runtime
from medmo_kernels.attention import attention_reference
from medmo_kernels.decode_attention import decode_attention

HEADS, KV_HEADS, DIM = 4, 2, 8


History = tuple[Tensor, Tensor]
"""Keys and values that a row sees."""


@pytest.fixture(params=[True, False], ids=["shared", "copied"])
def shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(kv_cache, "SHARE_FROM", 1 if request.param else 10**9)
    return request.param


def heads(count: int, num_heads: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, num_heads, DIM, generator=generator, dtype=torch.float64)


class Model:
    """Two layers of random keys and values through the cache, beside each row's own history."""

    def __init__(self, shared: bool) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.cache = KVCache(shared=shared)
        self.prompts: list[list[History]] = [[], []]
        self.rows: list[list[History]] = [[], []]

    def run_prompts(self, lengths: list[int]) -> None:
        self.cache.expect(lengths)
        for layer, known in enumerate(self.prompts):
            key, value = (heads(sum(lengths), KV_HEADS, self.generator) for _ in range(2))
            self.cache.keep_prompt(layer, key, value)
            known += zip(key.split(lengths), value.split(lengths), strict=True)

    def arrange(self, kept: list[int], prompts: list[int], waiting: list[int]) -> None:
        self.cache.arrange(kept, prompts, waiting)
        for layer, rows in enumerate(self.rows):
            self.rows[layer] = [rows[row] for row in kept] + [self.prompts[layer][prompt] for prompt in prompts]

    def step(self) -> None:
        """Write one token of each row, and hold what it sees against packed attention to its history."""
        count = len(self.rows[0])
        for layer, rows in enumerate(self.rows):
            query = heads(count, HEADS, self.generator)
            key, value = (heads(count, KV_HEADS, self.generator) for _ in range(2))
            out = self.cache.attend(layer, query, key, value)
            for row, (k, v) in enumerate(rows):
                k, v = torch.cat([k, key[row : row + 1]]), torch.cat([v, value[row : row + 1]])
                rows[row] = k, v
                padded = torch.zeros(len(k), HEADS, DIM, dtype=torch.float64)
                padded[-1] = query[row]
                expected = attention_reference(padded, k, v, torch.tensor([0, len(k)]), True)[-1]
                torch.testing.assert_close(out[row], expected)
        self.cache.advance()


def test_the_kernels_write_and_look_back(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of a decoder by the Triton kernels, in whatever cache, give what the plain forms give."""
    pytest.importorskip("triton")
    torch.manual_seed(0)
    decoder = MedMO.from_config(PRESETS["debug"]).decoder.requires_grad_(False)
    lengths, owners = [7, 3], [0, 0, 1]
    generator = torch.Generator().manual_seed(1)
    blocks = [torch.randn(2, sum(lengths), 2, 16, generator=generator) for _ in decoder.layers]
    outs: list[list[Tensor]] = []
    for mode in ("auto", "triton"):
        monkeypatch.setenv(runtime.SWITCH, mode)
        cache = KVCache(shared=shared)
        cache.expect(lengths)
        for layer, (key, value) in enumerate(blocks):
            cache.keep_prompt(layer, key, value)
        cache.arrange([], owners)
        outs.append([])
        for token in range(3):
            positions = torch.tensor([7, 7, 3]) + token
            outs[-1].append(decoder.step(torch.tensor([5, 6, 7]) + token, positions, cache))
            cache.advance()
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)


class FixedRows:
    """Rows that each begin at column 0 of a storage that never moves, filled to lengths of their own."""

    def __init__(self, blocks: list[Tensor], lengths: list[int], room: int) -> None:
        self.own = [torch.full((2, len(lengths), KV_HEADS, room, 16), float("nan"), dtype=b.dtype) for b in blocks]
        for storage, block in zip(self.own, blocks, strict=True):
            for row, prompt in enumerate(block.split(lengths, dim=1)):
                storage[:, row, :, : lengths[row]] = prompt.transpose(1, 2)
        self.columns = torch.tensor(lengths, dtype=torch.int32)

    def place(self, layer: int) -> Place:
        return Place(*self.own[layer], self.columns)

    def look_back(self, layer: int, q_BHD: Tensor) -> Tensor:
        return decode_attention(q_BHD, *self.own[layer], self.columns + 1)


@pytest.mark.parametrize(("mode", "dtype"), [("auto", torch.float64), ("triton", torch.float32)])
def test_rows_of_lengths_of_their_own_may_wait(
    mode: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a fixed set of rows would do: one that has ended is given no column, writes nothing and changes nobody."""
    if mode == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv(runtime.SWITCH, mode)
    torch.manual_seed(0)
    decoder = MedMO.from_config(PRESETS["debug"]).decoder.requires_grad_(False).to(dtype)
    lengths, generator = [7, 3, 5], torch.Generator().manual_seed(1)
    blocks = [torch.randn(2, sum(lengths), KV_HEADS, 16, generator=generator).to(dtype) for _ in decoder.layers]
    moving, fixed = KVCache(shared=False), FixedRows(blocks, lengths, room=16)
    moving.expect(lengths)
    for layer, (key, value) in enumerate(blocks):
        moving.keep_prompt(layer, key, value)
    moving.arrange([], [0, 1, 2])
    kept = [0, 1, 2]
    for token in range(4):
        if token == 2:
            kept = [0, 2]
            moving.arrange(kept)
            fixed.columns[1], before = -1, [x[:, 1].clone() for x in fixed.own]
        tokens, positions = torch.tensor([5, 6, 7]) + token, torch.tensor(lengths) + token
        expected = decoder.step(tokens[kept], positions[kept], moving)
        moving.advance()
        out = decoder.step(tokens, positions, fixed)
        fixed.columns += (fixed.columns >= 0).int()
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(out[kept], expected, rtol=tolerance, atol=tolerance)
    assert all(torch.equal(x[:, 1].nan_to_num(), y.nan_to_num()) for x, y in zip(fixed.own, before, strict=True))


def test_a_step_compiles_whole_and_once() -> None:
    """No part of a traced step holds the token's number: the graph of the first token serves the next ones."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    decoder = MedMO.from_config(PRESETS["debug"]).decoder.requires_grad_(False)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(decoder.step, backend=counter, fullgraph=True)
    outs: list[list[Tensor]] = [[], []]
    for found, step in zip(outs, (decoder.step, compiled), strict=True):
        cache = KVCache(shared=True)
        cache.expect([7, 3])
        for layer, _ in enumerate(decoder.layers):
            cache.keep_prompt(layer, torch.ones(10, 2, 16) * layer, torch.ones(10, 2, 16))
        cache.arrange([], [0, 0, 1])
        for token in range(3):
            with torch.no_grad():
                found.append(step(torch.tensor([5, 6, 7]) + token, torch.tensor([7, 7, 3]) + token, cache))
            cache.advance()
    torch.testing.assert_close(*outs)
    assert counter.frame_count == 1


@pytest.mark.parametrize("lengths", [[5, 1, 7], [4, 4, 4]], ids=["ragged", "equal"])
def test_rows_attend_to_their_prompt_and_what_they_wrote(shared: bool, lengths: list[int]) -> None:
    """Rows end, and with them two of the three prompts."""
    model = Model(shared)
    model.run_prompts(lengths)
    model.arrange([], [0, 0, 1, 1, 2, 2], [])
    for kept in (None, [0, 2, 3, 5], [1, 2], [1], None):
        if kept is not None:
            model.arrange(kept, [], [])
        model.step()
    assert model.cache.prompts[0][0].shape[0] == (1 if shared else 0), "prompts without rows are dropped"


@pytest.mark.parametrize("growth", [1, 3, 64])
def test_rows_come_and_go(shared: bool, growth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer and shorter prompts arrive, one waits for its second row, columns are filled and laid out anew."""
    monkeypatch.setattr(kv_cache, "GROWTH", growth)
    model = Model(shared)
    model.run_prompts([3, 6])
    model.arrange([], [0, 0, 1], [1])
    model.step(), model.step()
    model.arrange([1, 2], [1], [])  # the waiting one
    model.step()
    model.run_prompts([9, 2, 4])
    model.arrange([0, 2], [2, 3], [4])
    for _ in range(5):
        model.step()
    model.arrange([3, 1], [4, 4], [])  # in another order
    model.step()
    model.arrange([0, 2, 3], [], [])
    model.step()
    written = max(len(key) for key, _ in model.rows[0]) - (2 if shared else 0)
    assert model.cache.width == written, "columns as many as the longest row has written"
    assert model.cache.own[0][0].shape[2] <= written + growth + 1
    held = [number for number, _ in enumerate(model.prompts[0]) if number in model.cache._held]
    assert held == ([3, 4] if shared else [])


def test_all_rows_end_before_others_begin(shared: bool) -> None:
    model = Model(shared)
    model.run_prompts([3])
    model.arrange([], [0], [])
    model.step()
    model.run_prompts([5, 2])
    model.arrange([], [1, 2, 2], [])
    model.step()
    assert model.cache.width == (1 if shared else 6)


def test_a_shared_prompt_is_stored_once(shared: bool) -> None:
    """The memory of prompts does not grow with the number of continuations."""
    sizes = []
    for num_generations in (2, 8):
        cache = KVCache(shared=shared)
        cache.expect([1000])
        cache.keep_prompt(0, torch.zeros(1000, KV_HEADS, DIM), torch.zeros(1000, KV_HEADS, DIM))
        cache.arrange([], [0] * num_generations)
        pairs = (*cache.prompts, *cache.own)
        sizes.append(sum(x.numel() for pair in pairs for x in pair))
    assert (sizes[1] < 1.5 * sizes[0]) if shared else (sizes[1] == 4 * sizes[0])


def test_what_comes_out_of_order_is_refused() -> None:
    cache = KVCache(shared=True)
    cache.expect([2])
    with pytest.raises(AssertionError, match="layer 1 after 0"):
        cache.keep_prompt(1, torch.zeros(2, 1, DIM), torch.zeros(2, 1, DIM))
    with pytest.raises(AssertionError, match="have not been arranged"):
        cache.expect([3])


def test_sharing_pays_where_it_saves_enough(shared: bool) -> None:
    host, gpu = torch.device("cpu"), torch.device("cuda")
    assert kv_cache.sharing_pays([300] * 8, 8, host) == shared
    assert kv_cache.sharing_pays([5], 2, gpu) and not kv_cache.sharing_pays([9000], 1, gpu)


def test_generation_is_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while rows end at different steps and the batch shrinks."""
    torch.manual_seed(0)
    model = MedMO.from_config(PRESETS["debug"], initializer_range=0.15).eval()
    lengths = [9, 14, 6]
    batch = Batch(
        input_ids=torch.randint(0, 200, (sum(lengths),)),
        labels=None,
        position_ids=torch.cat([torch.arange(n).expand(3, -1) for n in lengths], 1),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32),
        patches={},
        image_grid_thw={},
    )
    found = []
    for share_from in (1, 10**9):
        monkeypatch.setattr(kv_cache, "SHARE_FROM", share_from)
        groups = model.generate(
            batch, max_new_tokens=12, temperature=1.0, num_generations=5, stop_token_ids=range(60), seed=3
        )
        found.append([generation for group in groups for generation in group])
    lengths_found = {len(generation.tokens) for generation in found[0]}
    assert len(lengths_found) > 3, "the case must hold rows that end at different steps"
    for a, b in zip(*found, strict=True):
        assert a.tokens == b.tokens
        assert a.logps == pytest.approx(b.logps, abs=1e-5)
