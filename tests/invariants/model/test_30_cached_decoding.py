"""Decoding with a key/value cache equals running everything again for every token, and a batch equals its rows alone.

Prompts with images included; sampled tokens are forced to be long enough to pass the cache's compactions.
"""

import pytest
import torch
from torch import Tensor

from medmo_core.batch import Batch, mrope_position_ids
from medmo_core.generation.kv_cache import KVCache
from medmo_core.models import PRESETS, MedMO

CONFIG = PRESETS["debug"].override(vocab_size=60, bos_token_id=34, eos_token_id=36, vision_start_token_id=43)
CONFIG = CONFIG.override(vision_end_token_id=44, image_token_id=46, video_token_id=47)
PROMPTS = [(9, (4, 4)), (14, (2, 8)), (6, None), (11, (4, 6))]  # tokens, grid of the image in patches
STEPS = 6


@pytest.fixture(scope="module")
def model() -> MedMO:
    torch.manual_seed(0)
    return MedMO.from_config(CONFIG, initializer_range=0.15).double().eval()


def documents() -> list[Batch]:
    """Return one batch of one document per prompt."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for index, (length, grid) in enumerate(PROMPTS):
        ids = torch.randint(0, 30, (length,), generator=generator)
        thw = None
        patches = {}
        if grid is not None:
            ids[2 : 2 + grid[0] * grid[1] // 4] = CONFIG.image_token_id
            thw = torch.tensor([[1, *grid]])
            patches = {"qwen3_vl": torch.randint(0, 256, (grid[0] * grid[1], 768), generator=generator).byte()}
        found.append(batch_of(ids, thw, patches, f"document {index}"))
    return found


def batch_of(ids: Tensor, thw: Tensor | None, patches: dict[str, Tensor], name: str) -> Batch:
    positions = mrope_position_ids(
        ids, thw, merge_size=2, image_token_id=CONFIG.image_token_id, video_token_id=CONFIG.video_token_id
    )
    grids = {} if thw is None else {"qwen3_vl": thw}
    ends = torch.tensor([0, len(ids)], dtype=torch.int32)
    return Batch(ids, None, positions, ends, patches, grids, sample_ids=(name,))


def joined(parts: list[Batch]) -> Batch:
    """Pack documents of one batch each."""
    lengths = torch.tensor([0, *(part.num_tokens for part in parts)])
    seeing = [part for part in parts if part.patches]
    return Batch(
        torch.cat([part.input_ids for part in parts]),
        None,
        torch.cat([part.position_ids for part in parts], dim=1),
        lengths.cumsum(0, dtype=torch.int32),
        {"qwen3_vl": torch.cat([part.patches["qwen3_vl"] for part in seeing])},
        {"qwen3_vl": torch.cat([part.image_grid_thw["qwen3_vl"] for part in seeing])},
        sample_ids=tuple(part.sample_ids[0] for part in parts),
    )


@torch.no_grad()
def check(model: MedMO) -> None:
    """Hold tokens and log-probabilities of the packed batch against full passes over each growing document."""
    prompts = documents()
    outcome = model.generate(joined(prompts), max_new_tokens=STEPS, stop_token_ids=())
    for prompt, [generation] in zip(prompts, outcome, strict=True):
        ids, thw = prompt.input_ids, prompt.image_grid_thw.get("qwen3_vl")
        for token, logp in zip(generation.tokens, generation.logps, strict=True):
            logits = model(batch_of(ids, thw, prompt.patches, "grown"))[-1]
            expected = logits.log_softmax(0)
            allowed = expected.clone()
            allowed[list(CONFIG.placeholder_token_ids)] = float("-inf")
            assert token == int(allowed.argmax())
            assert abs(logp - float(expected[token])) < 1e-9
            ids = torch.cat([ids, torch.tensor([token])])


def test_every_token_equals_a_full_pass(model: MedMO) -> None:
    check(model)


@torch.no_grad()
def test_a_batch_of_mixed_lengths_equals_its_rows_alone(model: MedMO) -> None:
    prompts = documents()
    settings = {"max_new_tokens": STEPS, "temperature": 0.8, "num_generations": 3, "stop_token_ids": (), "seed": 4}
    together = model.generate(joined(prompts), **settings)
    for prompt, expected in zip(prompts, together, strict=True):
        [alone] = model.generate(prompt, **settings)
        assert [g.tokens for g in alone] == [g.tokens for g in expected]
        for one, other in zip(alone, expected, strict=True):
            torch.testing.assert_close(torch.tensor(one.logps), torch.tensor(other.logps), rtol=1e-6, atol=1e-6)


def test_a_cache_that_forgets_a_token_is_noticed(model: MedMO, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = KVCache.look_back
    calls = 0

    def forgetful(self: KVCache, layer: int, q: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            self.place(layer).value[:, :, self.width] = 0.0
        return plain(self, layer, q)

    monkeypatch.setattr(KVCache, "look_back", forgetful)
    with pytest.raises(AssertionError):
        check(model)
    assert calls > 2
