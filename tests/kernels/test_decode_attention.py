"""Laws of decode attention: it is the last row of attention, sharing is copying, order and parts do not matter."""

import importlib.util
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medmo_kernels import runtime
from medmo_kernels.attention import attention_reference
from medmo_kernels.decode_attention import decode_attention, decode_attention_reference

HEADS, KV_HEADS, DIM = 4, 2, 16


@pytest.fixture(params=["auto", "triton"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the plain form and the kernels."""
    if request.param == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    monkeypatch.setenv(runtime.SWITCH, request.param)
    return request.param


def case(seed: int, rows: int, columns: int, prompts: list[int], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Return random arguments; rows belong to prompts in order; NaN where no token is."""
    generator = torch.Generator().manual_seed(seed)

    def cache(lengths: list[int], columns: int) -> tuple[Tensor, Tensor]:
        pair = []
        for _ in range(2):
            x = torch.randn(len(lengths), KV_HEADS, columns, DIM, generator=generator, dtype=torch.float64).to(dtype)
            for row, length in enumerate(lengths):
                x[row, :, length:] = float("nan")
            pair.append(x)
        return pair[0], pair[1]

    own = torch.randint(0, columns + 1, (rows,), generator=generator).tolist()
    owners = torch.randint(0, len(prompts), (rows,), generator=generator).sort().values.int()
    key, value = cache(own, columns)
    prompt_key, prompt_value = cache(prompts, max(prompts))
    return {
        "query": torch.randn(rows, HEADS, DIM, generator=generator, dtype=torch.float64).to(dtype),
        "key_cache": key,
        "value_cache": value,
        "lengths": torch.tensor(own, dtype=torch.int32),
        "prompt_key": prompt_key,
        "prompt_value": prompt_value,
        "prompt_lengths": torch.tensor(prompts, dtype=torch.int32),
        "prompt_of": owners,
    }


def row_tokens(arguments: dict[str, Any], row: int) -> tuple[Tensor, Tensor]:
    """Return the (tokens, K, D) keys and values of one row: its prompt, then its own."""
    prompt = int(arguments["prompt_of"][row])
    length, own = int(arguments["prompt_lengths"][prompt]), int(arguments["lengths"][row])
    pairs = (("prompt_key", "key_cache"), ("prompt_value", "value_cache"))
    key, value = (
        torch.cat([arguments[a][prompt, :, :length], arguments[b][row, :, :own]], dim=1).transpose(0, 1)
        for a, b in pairs
    )
    return key, value


PROMPTS = st.lists(st.integers(0, 9), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(1, 9), st.integers(0, 5), PROMPTS)
def test_equals_the_last_row_of_attention(seed: int, rows: int, columns: int, prompts: list[int]) -> None:
    """An independent oracle: packed causal attention, in which the new token comes last. Never NaN."""
    arguments = case(seed, rows, columns, prompts, torch.float64)
    out = decode_attention(**arguments)
    for row in range(rows):
        key, value = row_tokens(arguments, row)
        if not key.shape[0]:
            assert torch.equal(out[row], torch.zeros(HEADS, DIM, dtype=torch.float64))
            continue
        query = torch.zeros(key.shape[0], HEADS, DIM, dtype=torch.float64)
        query[-1] = arguments["query"][row]
        ends = torch.tensor([0, key.shape[0]], dtype=torch.int32)
        torch.testing.assert_close(out[row], attention_reference(query, key, value, ends, True)[-1])


def test_sharing_equals_copying(mode: str) -> None:
    """A plain cache that holds prompt and own tokens of every row, aligned on the right."""
    arguments = case(1, 7, 3, [5, 8, 2])
    columns = 12
    copied = torch.full((2, 7, KV_HEADS, columns, DIM), float("nan"))
    pads = []
    for row in range(7):
        for into, tokens in zip(copied, row_tokens(arguments, row), strict=True):
            into[row, :, columns - tokens.shape[0] :] = tokens.transpose(0, 1)
        pads.append(columns - row_tokens(arguments, row)[0].shape[0])
    plain = decode_attention(arguments["query"], copied[0], copied[1], left_pad=torch.tensor(pads, dtype=torch.int32))
    torch.testing.assert_close(decode_attention(**arguments), plain, rtol=1e-5, atol=1e-5)


def test_order_of_rows_does_not_matter(mode: str) -> None:
    arguments = case(2, 9, 4, [6, 0, 3])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    rowwise = ("query", "key_cache", "value_cache", "lengths", "prompt_of")
    shuffled = {name: x[order] if name in rowwise else x for name, x in arguments.items()}
    torch.testing.assert_close(decode_attention(**shuffled), decode_attention(**arguments)[order])


def test_strided_caches_equal_contiguous_ones(mode: str) -> None:
    """A prefix of a cache, and one laid out (B, S, K, D)."""
    arguments = case(4, 3, 4, [5, 2])
    for name in ("key_cache", "value_cache", "prompt_key", "prompt_value"):
        x = arguments[name]
        room = torch.full((x.shape[0] + 1, x.shape[2] + 3, KV_HEADS, DIM), float("nan"))
        room[:-1, : x.shape[2]] = x.transpose(1, 2)
        strided = room.transpose(1, 2)[:-1, :, : x.shape[2]]
        arguments[f"{name}, contiguous"], arguments[name] = x, strided
    contiguous = {name.removesuffix(", contiguous"): x for name, x in arguments.items()}
    given = {name: x for name, x in arguments.items() if "," not in name}
    contiguous |= {name.removesuffix(", contiguous"): x for name, x in arguments.items() if "," in name}
    torch.testing.assert_close(decode_attention(**given), decode_attention(**contiguous))


def test_the_number_of_parts_changes_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv(runtime.SWITCH, "triton")
    arguments = case(5, 3, 140, [150, 70])
    truth = decode_attention_reference(**{n: x.double() if x.is_floating_point() else x for n, x in arguments.items()})
    outs = [decode_attention(**arguments, num_splits=splits) for splits in (1, 2, 5)]
    for out in outs:
        torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("own", [[1, 1, 1], [64, 65, 130], [0, 7, 7], [0, 0, 0]], ids=str)
@pytest.mark.parametrize("with_prompts", [False, True], ids=["plain", "prompts"])
def test_a_cache_with_room_gives_the_bits_of_its_filled_columns(mode: str, own: list[int], with_prompts: bool) -> None:
    """Caches handed over whole, NaN behind their tokens, at every fill: what a captured graph does with one call."""
    dtype = torch.float64 if mode == "auto" else torch.float32
    arguments = case(10, 3, max(own), [70, 5], dtype)
    arguments["lengths"] = torch.tensor(own, dtype=torch.int32)
    for name in ("key_cache", "value_cache"):
        arguments[name] = torch.randn_like(arguments[name])
        for row, length in enumerate(own):
            arguments[name][row, :, length:] = float("nan")
    if not with_prompts:
        arguments = {name: x for name, x in arguments.items() if not name.startswith("prompt")}
    whole = dict(arguments)
    for name, room in (("key_cache", 200), ("value_cache", 200), ("prompt_key", 96), ("prompt_value", 96)):
        if name in arguments:
            x = arguments[name]
            whole[name] = x.new_full((x.shape[0], KV_HEADS, room, DIM), float("nan"))
            whole[name][:, :, : x.shape[2]] = x
    out = decode_attention(**whole, num_splits=3)
    assert torch.equal(out, decode_attention(**arguments, num_splits=3)) and not out.isnan().any()
    torch.testing.assert_close(out, decode_attention_reference(**whole), rtol=1e-5, atol=1e-6)
    if mode == "auto" and min(own) == max(own) > 0 and not with_prompts:
        full = {name: x for name, x in arguments.items() if name != "lengths"}
        assert torch.equal(out, decode_attention(**full)), "the call without lengths"


@pytest.mark.parametrize("num_splits", [None, 2])
def test_a_row_has_the_same_bits_whatever_is_decoded_beside_it(
    num_splits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths, contents and prompts of the other rows; with the parts given, how many they are, too."""
    pytest.importorskip("triton")
    monkeypatch.setenv(runtime.SWITCH, "triton")
    arguments = case(11, 4, 140, [70, 33], torch.float32)
    arguments |= {"prompt_of": torch.tensor([0, 1, 1, 0]).int(), "lengths": torch.tensor([3, 131, 0, 90]).int()}
    for name in ("key_cache", "value_cache"):
        arguments[name] = torch.randn_like(arguments[name])
    together = decode_attention(**arguments, num_splits=num_splits)
    other = {name: x.clone() for name, x in arguments.items()}
    other["prompt_of"][[0, 2]], other["lengths"][[0, 2]] = torch.tensor([1, 0]).int(), torch.tensor([140, 77]).int()
    other["query"][[0, 2]] = 9.0
    for name in ("key_cache", "value_cache"):
        other[name][[0, 2]] = float("nan")
    kept = decode_attention(**other, num_splits=num_splits)
    assert torch.equal(kept[[1, 3]], together[[1, 3]]) and kept[[0, 2]].isnan().all()
    if num_splits is not None:
        plain = {name: x for name, x in arguments.items() if not name.startswith("prompt")}
        alone = {name: x[1:2] for name, x in plain.items()}
        both = (decode_attention(**given, num_splits=num_splits) for given in (plain, alone))
        assert torch.equal(next(both)[1:2], next(both))


def test_nan_in_one_prompt_stays_with_its_rows(mode: str) -> None:
    """Also where rows of three prompts share a tile; and a row alone gets what it gets beside others."""
    arguments = case(6, 6, 2, [70, 40, 5])
    arguments["prompt_of"] = torch.tensor([0, 0, 1, 1, 2, 2], dtype=torch.int32)
    arguments["prompt_key"][0] = float("nan")
    together = decode_attention(**arguments)
    assert together[:2].isnan().all() and not together[2:].isnan().any()
    rowwise = ("query", "key_cache", "value_cache", "lengths", "prompt_of")
    alone = {name: x[3:4] if name in rowwise else x for name, x in arguments.items()}
    torch.testing.assert_close(decode_attention(**alone)[0], together[3], rtol=1e-5, atol=1e-6)


def test_large_scores_do_not_overflow(mode: str) -> None:
    arguments = case(7, 4, 3, [5, 2])
    arguments["query"] *= 1e4
    truth = decode_attention_reference(**{n: x.double() if x.is_floating_point() else x for n, x in arguments.items()})
    torch.testing.assert_close(decode_attention(**arguments).double(), truth, rtol=1e-3, atol=1e-3)


def test_no_gradient_is_promised() -> None:
    arguments = case(8, 2, 2, [3])
    arguments["query"].requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient"):
        decode_attention(**arguments)
    with torch.no_grad():
        assert decode_attention(**arguments).shape == (2, HEADS, DIM)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query", lambda x: x[0]),
        ("query", lambda x: x[:, :3]),
        ("query", lambda x: x.half()),
        ("key_cache", lambda x: x[:, :, :1]),
        ("value_cache", lambda x: x[:1]),
        ("lengths", lambda x: x.long()),
        ("lengths", lambda x: x[:1]),
        ("prompt_key", lambda x: x[:, :1]),
        ("prompt_lengths", lambda x: x[:0]),
        ("prompt_of", lambda x: x[:1]),
        ("prompt_of", lambda x: None),
    ],
)
def test_what_does_not_fit_is_refused(name: str, change: Any) -> None:
    arguments = case(9, 2, 2, [3])
    arguments[name] = change(arguments[name])
    with pytest.raises(ValueError, match="decode_attention: .*prompt_"):
        decode_attention(**arguments)


def test_whole_numbers_are_refused() -> None:
    cache = torch.ones(1, 1, 3, 8, dtype=torch.int32)
    with pytest.raises(ValueError, match="floats of one dtype"):
        decode_attention(cache[:, :, 0], cache, cache)


def test_no_row_of_no_prompt_gives_nothing() -> None:
    cache, nobody = torch.ones(0, 1, 3, 8), torch.zeros(0, dtype=torch.int32)
    prompts = {"prompt_key": cache, "prompt_value": cache, "prompt_of": nobody}
    assert decode_attention(cache[:, :, 0], cache, cache, **prompts).shape == (0, 1, 8)


def test_a_number_of_parts_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="num_splits is 33"):
        decode_attention(**case(9, 2, 2, [3]), num_splits=33)
