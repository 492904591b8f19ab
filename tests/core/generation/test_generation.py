"""Generation: equal to transformers and to the uncached model, honest log-probabilities, samples of their own."""

import pytest
import torch

from medmo_core.batch import Batch, mrope_position_ids
from medmo_core.models import PRESETS, Generation, MedMO

CONFIG = PRESETS["debug"].override(vocab_size=60, bos_token_id=34, eos_token_id=36, vision_start_token_id=43)
CONFIG = CONFIG.override(vision_end_token_id=44, image_token_id=46, video_token_id=47)
IMAGE = CONFIG.image_token_id


def make_model(seed: int = 0, scale: float = 0.15) -> MedMO:
    torch.manual_seed(seed)
    return MedMO.from_config(CONFIG, initializer_range=scale).eval()


def make_prompts(lengths: list[int], grids: list[tuple[int, int] | None], seed: int = 0, ids: bool = True) -> Batch:
    """Documents of random text, each with one image of the given grid (or none) near its start."""
    generator = torch.Generator().manual_seed(seed)
    rows, positions, patches, thw = [], [], [], []
    for length, grid in zip(lengths, grids, strict=True):
        row = torch.randint(0, 30, (length,), generator=generator)
        own = None
        if grid is not None:
            row[2 : 2 + grid[0] * grid[1] // 4] = IMAGE
            own = torch.tensor([[1, *grid]])
            thw.append(own)
            patches.append(torch.randint(0, 256, (grid[0] * grid[1], 768), generator=generator, dtype=torch.uint8))
        rows.append(row)
        positions.append(mrope_position_ids(row, own, merge_size=2, image_token_id=IMAGE, video_token_id=47))
    return Batch(
        input_ids=torch.cat(rows),
        labels=None,
        position_ids=torch.cat(positions, 1),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32),
        patches={"qwen3_vl": torch.cat(patches)} if patches else {},
        image_grid_thw={"qwen3_vl": torch.cat(thw)} if thw else {},
        sample_ids=tuple(f"doc-{seed}-{i}" for i in range(len(lengths))) if ids else (),
    )


RAGGED = make_prompts([9, 14, 6, 11], [(4, 4), (2, 8), None, (4, 4)])


def extend(batch: Batch, index: int, new: list[int]) -> Batch:
    """Return one document of the batch followed by new text, the new tokens labelled."""
    start, stop = batch.cu_seqlens[index : index + 2].tolist()
    ids = batch.input_ids[start:stop]
    positions = batch.position_ids[:, start:stop]
    more = torch.arange(len(new)) + positions.max() + 1
    images = [(i, grid) for i, grid in enumerate(batch.image_grid_thw["qwen3_vl"])]
    owners = [i for i in range(batch.num_documents) if IMAGE in document(batch, i)]
    patches, grids = {}, {}
    if index in owners:
        at = owners.index(index)
        sizes = [int(grid.prod()) for _, grid in images]
        first = sum(sizes[:at])
        patches = {"qwen3_vl": batch.patches["qwen3_vl"][first : first + sizes[at]]}
        grids = {"qwen3_vl": batch.image_grid_thw["qwen3_vl"][at : at + 1]}
    return Batch(
        input_ids=torch.cat([ids, torch.tensor(new, dtype=torch.int64)]),
        labels=torch.tensor([-100] * len(ids) + new),
        position_ids=torch.cat([positions, more.expand(3, -1)], 1),
        cu_seqlens=torch.tensor([0, len(ids) + len(new)], dtype=torch.int32),
        patches=patches,
        image_grid_thw=grids,
        sample_ids=batch.sample_ids[index : index + 1],
    )


def document(batch: Batch, index: int) -> list[int]:
    start, stop = batch.cu_seqlens[index : index + 2].tolist()
    return batch.input_ids[start:stop].tolist()


def all_tokens(generation: Generation) -> list[int]:
    return generation.tokens + ([] if generation.stop_token is None else [generation.stop_token])


@torch.no_grad()
def greedy_without_cache(model: MedMO, batch: Batch, index: int, steps: int) -> list[int]:
    new: list[int] = []
    for _ in range(steps):
        logits = model(extend(batch, index, new))[-1]
        logits[list(CONFIG.placeholder_token_ids)] = float("-inf")
        new.append(int(logits.argmax()))
    return new


def test_greedy_with_cache_equals_greedy_without() -> None:
    model = make_model()
    results = model.generate(RAGGED, max_new_tokens=7, stop_token_ids=())
    for index, [generation] in enumerate(results):
        assert generation.tokens == greedy_without_cache(model, RAGGED, index, 7)
        assert not generation.finished


def test_greedy_equals_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    model = make_model(1)
    theirs = transformers.Qwen3VLForConditionalGeneration(transformers.Qwen3VLConfig(**CONFIG.to_dict())).eval()
    theirs.load_state_dict(model.state_dict(), strict=False)
    theirs.tie_weights()
    batch = make_prompts([12, 12, 12], [(4, 4), (2, 8), (4, 6)], seed=3)
    ids = batch.input_ids.view(3, 12)
    pixels = batch.patches["qwen3_vl"].view(-1, 3, 1, 16, 16).expand(-1, 3, 2, 16, 16).flatten(1)
    expected = theirs.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == IMAGE).int(),
        pixel_values=(pixels.float() / 255 - 0.5) / 0.5,
        image_grid_thw=batch.image_grid_thw["qwen3_vl"],
        max_new_tokens=10,
        do_sample=False,
        suppress_tokens=list(CONFIG.placeholder_token_ids),
        eos_token_id=None,
        pad_token_id=0,
    )[:, 12:]
    ours = model.generate(batch, max_new_tokens=10, stop_token_ids=())
    assert [generation.tokens for [generation] in ours] == expected.tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_equal_token_logprobs(temperature: float) -> None:
    """Also under top-k and top-p: the log-probability is that of the full distribution."""
    model = make_model(2)
    results = model.generate(
        RAGGED,
        max_new_tokens=8,
        temperature=temperature,
        top_p=0.9,
        top_k=20,
        num_generations=3,
        stop_token_ids=range(10),
        seed=5,
    )
    finished = 0
    for index, group in enumerate(results):
        assert len(group) == 3
        for generation in group:
            expected = model.token_logprobs(extend(RAGGED, index, all_tokens(generation)), temperature)
            torch.testing.assert_close(torch.tensor(generation.logps), expected, rtol=1e-5, atol=1e-5)
            assert len(generation.logps) == len(generation.tokens) + generation.finished
            assert not set(generation.tokens) & set(range(10))
            finished += generation.finished
    assert 0 < finished < 12, "the case must hold rows that stop early and rows that do not"


def test_greedy_log_probabilities_are_at_temperature_one() -> None:
    model = make_model(3)
    [[generation]] = model.generate(extend(RAGGED, 0, []), max_new_tokens=4, stop_token_ids=())
    expected = model.token_logprobs(extend(RAGGED, 0, generation.tokens), 1.0)
    torch.testing.assert_close(torch.tensor(generation.logps), expected, rtol=1e-5, atol=1e-5)


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    model = make_model(4)
    settings = {"max_new_tokens": 9, "temperature": 1.0, "num_generations": 2, "stop_token_ids": (3, 4, 5), "seed": 11}
    together = model.generate(RAGGED, **settings)
    for index, group in enumerate(together):
        [alone] = model.generate(extend(RAGGED, index, []), **settings)
        assert [g.tokens for g in alone] == [g.tokens for g in group]
    [fewer] = model.generate(extend(RAGGED, 1, []), **{**settings, "num_generations": 1})
    assert fewer[0].tokens == together[1][0].tokens


def test_samples_follow_the_seed_and_differ_within_a_group() -> None:
    model = make_model(5, scale=0.02)  # nearly uniform: repeats are unlikely
    settings = {"max_new_tokens": 10, "temperature": 1.0, "num_generations": 4, "stop_token_ids": ()}
    first, again = (model.generate(RAGGED, seed=1, **settings) for _ in range(2))
    other = model.generate(RAGGED, seed=2, **settings)
    assert first == again
    assert all(a.tokens != b.tokens for x, y in zip(first, other, strict=True) for a, b in zip(x, y, strict=True))
    assert len({tuple(g.tokens) for group in first for g in group}) == 16


def test_the_same_document_twice_gets_two_samples() -> None:
    model = make_model(5, scale=0.02)
    one = make_prompts([6, 6], [None, None])
    one.input_ids[6:] = one.input_ids[:6]
    one.sample_ids = ("same", "same")
    [[a], [b]] = model.generate(one, max_new_tokens=10, temperature=1.0, stop_token_ids=())
    assert a.tokens != b.tokens


def test_placeholders_are_never_sampled() -> None:
    """Even when the model wants nothing else."""
    model = make_model(6)
    with torch.no_grad():
        hidden = model.hidden_states(RAGGED)
        model.head_weight[list(CONFIG.placeholder_token_ids)] = 10 * hidden[-1]
    banned = set(CONFIG.placeholder_token_ids)
    assert banned == {43, 44, 45, 46, 47}
    assert int(model(RAGGED)[-1].argmax()) in banned
    for temperature in (0.0, 1.0):
        results = model.generate(
            RAGGED, max_new_tokens=20, temperature=temperature, stop_token_ids=(), num_generations=2
        )
        for group in results:
            for generation in group:
                assert not banned & set(generation.tokens)


def test_samples_follow_the_distribution() -> None:
    """1,500 first tokens against the model's probabilities, with top-k and top-p cutting the same tail by hand."""
    model = make_model(7, scale=0.3)
    prompt = make_prompts([5], [None])
    logits = model(prompt)[-1] / 0.8
    logits[list(CONFIG.placeholder_token_ids)] = float("-inf")
    probs = logits.softmax(-1)
    order = probs.argsort(descending=True)
    kept = order[: int((probs[order].cumsum(0) - probs[order] < 0.7).sum())]
    for settings, support in (({}, order), ({"top_k": 4}, order[:4]), ({"top_p": 0.7}, kept)):
        [group] = model.generate(
            prompt, max_new_tokens=1, temperature=0.8, num_generations=1500, stop_token_ids=(), **settings
        )
        counts = torch.bincount(torch.tensor([g.tokens[0] for g in group]), minlength=60).double() / 1500
        expected = torch.zeros(60, dtype=torch.float64)
        expected[support] = probs[support].double()
        expected /= expected.sum()
        assert (counts - expected).abs().max() < 0.045
        assert counts[expected == 0].sum() == 0


def test_stop_token_is_reported_and_left_out() -> None:
    model = make_model()
    free = model.generate(RAGGED, max_new_tokens=7, stop_token_ids=())
    stop = free[1][0].tokens[3]
    held = model.generate(RAGGED, max_new_tokens=7, stop_token_ids=(stop,))
    expected = free[1][0].tokens[: free[1][0].tokens.index(stop)]
    assert held[1][0].tokens == expected
    assert (held[1][0].finished, held[1][0].stop_token) == (True, stop)
    assert held[1][0].logps == pytest.approx(free[1][0].logps[: len(expected) + 1], abs=1e-5)


def test_default_stop_token_is_the_configs() -> None:
    model = make_model(8)
    with torch.no_grad():
        model.head_weight[CONFIG.eos_token_id] = 100 * model.hidden_states(RAGGED)[-1]
    generation = model.generate(extend(RAGGED, 3, []), max_new_tokens=5)[0][0]
    assert generation == Generation([], generation.logps, True, CONFIG.eos_token_id)


def test_generation_leaves_training_intact() -> None:
    """Tables cached during generation must be usable under autograd afterwards."""
    model = make_model(9)
    batch = make_prompts([10], [(6, 2)], seed=9)
    model.generate(batch, max_new_tokens=3, temperature=1.0)
    model.loss(extend(batch, 0, [1, 2, 3])).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"num_generations": 0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        make_model().generate(RAGGED, **{"max_new_tokens": 2, **settings})


def test_branches_of_a_shared_prompt_are_refused() -> None:
    """They are no prompts of their own."""
    positions = torch.tensor([0, 1, 2, 2]).expand(3, 4)
    bounds, prompts = torch.tensor([0, 2, 3, 4], dtype=torch.int32), torch.tensor([-1, 0, 0])
    batch = Batch(torch.arange(4), None, positions, bounds, prompt_of=prompts)
    with pytest.raises(ValueError, match="without share_prefixes, and ask for num_generations"):
        make_model().generate(batch, max_new_tokens=2)
