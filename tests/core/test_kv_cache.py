"""The cache: sharing prompts equals copying them, through writing, dropping rows and dropping prompts."""

import pytest
import torch
from torch import Tensor

from medmo_core.batch import Batch
from medmo_core.models import PRESETS, MedMO
from medmo_core.modules import kv_cache
from medmo_core.modules.kv_cache import KVCache
from medmo_kernels.attention import attention_reference

HEADS, KV_HEADS, DIM = 4, 2, 8
ROOM = 6


@pytest.fixture(params=[True, False], ids=["shared", "copied"])
def shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(kv_cache, "SHARE_FROM", 1 if request.param else 10**9)
    return request.param


def heads(count: int, num_heads: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, num_heads, DIM, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("lengths", [[5, 1, 7], [4, 4, 4]], ids=["ragged", "equal"])
def test_rows_attend_to_their_prompt_and_what_they_wrote(shared: bool, lengths: list[int]) -> None:
    """Against each row's own history in packed attention; rows end, and with them two of the three prompts."""
    generator = torch.Generator().manual_seed(0)
    cache = KVCache(lengths, ROOM, 2, torch.device("cpu"))
    assert cache.shared == shared
    prompts = [[heads(sum(lengths), KV_HEADS, generator) for _ in range(2)] for _ in range(2)]
    histories = []
    for layer, (key, value) in enumerate(prompts):
        cache.keep_prompt(layer, key, value)
        own = zip(key.split(lengths), value.split(lengths), strict=True)
        histories.append([(k, v) for k, v in own for _ in range(2)])
    for kept in (None, [0, 2, 3, 5], [1, 2], [1], None):
        if kept is not None:
            index = cache.select(kept)
            assert index.tolist() == kept
            histories = [[rows[row] for row in kept] for rows in histories]
        count = len(histories[0])
        for layer, rows in enumerate(histories):
            query, key, value = heads(count, HEADS, generator), *(heads(count, KV_HEADS, generator) for _ in range(2))
            out = cache.attend(layer, query, key, value)
            for row, (k, v) in enumerate(rows):
                k, v = torch.cat([k, key[row : row + 1]]), torch.cat([v, value[row : row + 1]])
                rows[row] = k, v
                padded = torch.zeros(len(k), HEADS, DIM, dtype=torch.float64)
                padded[-1] = query[row]
                expected = attention_reference(padded, k, v, torch.tensor([0, len(k)]), True)[-1]
                torch.testing.assert_close(out[row], expected)
        cache.advance()
    if shared:
        assert cache.prompts[0][0].shape[0] == 1, "prompts without rows are dropped"


def test_a_shared_prompt_is_stored_once(shared: bool) -> None:
    """The memory of prompts does not grow with the number of continuations."""
    sizes = []
    for num_generations in (2, 8):
        cache = KVCache([100], 1, num_generations, torch.device("cpu"))
        cache.keep_prompt(0, torch.zeros(100, KV_HEADS, DIM), torch.zeros(100, KV_HEADS, DIM))
        pairs = (*cache.prompts, *cache.own)
        sizes.append(sum(x.numel() for pair in pairs for x in pair))
    assert (sizes[1] < 1.2 * sizes[0]) if shared else (sizes[1] == 4 * sizes[0])


def test_layers_must_come_in_order() -> None:
    cache = KVCache([2], 1, 1, torch.device("cpu"))
    with pytest.raises(AssertionError, match="layer 1 after 0"):
        cache.keep_prompt(1, torch.zeros(2, 1, DIM), torch.zeros(2, 1, DIM))


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
