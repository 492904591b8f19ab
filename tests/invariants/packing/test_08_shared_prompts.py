"""Invariant 8: one prompt with k branches equals k separate sequences, in the loss and in every parameter's gradient.

The positions of a branch go on after the largest of its prompt; its first token is predicted from the prompt's last.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from medmo_core.batch import Batch
from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.models import medmo
from medmo_core.models.targets import labelled_rows, learned_positions
from medmo_core.modules.attention import TextAttention


def branches(toy: Any, prompt: Document, lengths: Sequence[tuple[int, int]]) -> list[Document]:
    """Return one document per (question, answer) length, all with the same beginning."""
    return [toy.extend(prompt, *length, seed=seed) for seed, length in enumerate(lengths)]


def one_image(toy: Any) -> list[Document]:
    return branches(toy, toy.prompt("one", [(4, 6)]), [(2, 3), (1, 5), (3, 2), (0, 4)])


def several_images(toy: Any) -> list[Document]:
    return branches(toy, toy.prompt("several", [(4, 4), (2, 6), (6, 2)], text=3), [(2, 4), (2, 3), (1, 1)])


def two_groups_and_plain_documents(toy: Any) -> list[Document]:
    first = branches(toy, toy.prompt("first", [(4, 4)], seed=1), [(1, 3), (2, 2)])
    second = branches(toy, toy.prompt("second", [(2, 4), (4, 4)], seed=2), [(0, 3), (0, 5), (0, 2)])
    lone = toy.extend(toy.prompt("lone", [(4, 4)], seed=3), 2, 4)
    text = toy.extend(toy.prompt("text", text=9, seed=4), 1, 3)
    return [lone, *first, text, *second]


def answers_of_one_token(toy: Any) -> list[Document]:
    """The prompt ends right before what is learned: every label is predicted from one row."""
    return branches(toy, toy.prompt("short", [(2, 2)]), [(0, 1), (0, 1), (0, 1)])


def text_alone(toy: Any) -> list[Document]:
    return branches(toy, toy.prompt("words", text=11), [(0, 3), (2, 2)])


def images_shown_again(toy: Any) -> list[Document]:
    """Documents of one prompt that are not neighbours: two trees, whose images are encoded once."""
    prompt = toy.prompt("again", [(4, 4), (2, 2)])
    first, second, third, fourth = branches(toy, prompt, [(0, 3), (1, 2), (2, 1), (0, 2)])
    between = branches(toy, toy.prompt("between", [(2, 4)], seed=5), [(0, 2), (0, 4)])
    return [first, second, *between, third, fourth]


def same_images_behind_other_words(toy: Any) -> list[Document]:
    """These cannot share a prompt; the image is encoded once all the same."""
    shared = branches(toy, toy.prompt("words", [(4, 4)]), [(0, 3), (1, 2)])
    ids = shared[1].input_ids.copy()
    ids[0] += 1
    return [*shared, replace(shared[1], input_ids=ids)]


CASES: list[Callable[[Any], list[Document]]] = [
    one_image,
    several_images,
    two_groups_and_plain_documents,
    answers_of_one_token,
    text_alone,
    images_shown_again,
]


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_branches_equal_separate_rows(
    toy: Any, case: Callable[[Any], list[Document]], tied: bool, recompute: bool
) -> None:
    model, items = toy.model(tied=tied), case(toy)
    if recompute:
        model.checkpoint_activations()
    batch = pack(items, share_prefixes=True)
    assert batch.prompt_of is not None and batch.num_tokens < sum(len(item.input_ids) for item in items)
    if any(item.patches for item in items):
        toy.assert_equals_separate_rows(model, items, [batch])
    else:
        with_image = toy.extend(toy.prompt("image", [(4, 4)]), 0, 2)  # so that the vision encoder has a gradient
        toy.assert_equals_separate_rows(model, [*items, with_image], [pack([*items, with_image], True)])


def test_images_that_cannot_share_a_prompt_are_still_encoded_once(toy: Any) -> None:
    items = same_images_behind_other_words(toy)
    batch = pack(items, share_prefixes=True)
    assert batch.prompt_of is None and batch.image_index is not None
    toy.assert_equals_separate_rows(toy.model(), items, [batch])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_log_probabilities_keep_the_order_of_the_items(toy: Any, case: Callable[[Any], list[Document]]) -> None:
    model, items = toy.model(), case(toy)
    with torch.no_grad():
        apart = torch.cat([model.token_logprobs(pack([item])) for item in items])
        torch.testing.assert_close(model.token_logprobs(pack(items, True)), apart, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_positions_and_first_tokens_go_on_from_the_prompt(toy: Any, case: Callable[[Any], list[Document]]) -> None:
    batch = pack(case(toy), share_prefixes=True)
    assert batch.prompt_of is not None
    bounds = batch.cu_seqlens.tolist()
    row_before = list(range(-1, batch.num_tokens - 1))
    for branch, prompt in enumerate(batch.prompt_of.tolist()):
        start, stop = bounds[branch], bounds[branch + 1]
        if prompt < 0:
            assert batch.position_ids[:, start].tolist() == [0, 0, 0]
            continue
        largest = int(batch.position_ids[:, bounds[prompt] : bounds[prompt + 1]].max())
        expected = largest + 1 + torch.arange(stop - start)
        assert torch.equal(batch.position_ids[:, start:stop], expected.expand(3, -1))
        row_before[start] = bounds[prompt + 1] - 1
    learned = learned_positions(batch).tolist()
    assert labelled_rows(batch)[0].tolist() == [row_before[token] for token in learned]
    assert labelled_rows(batch)[1].tolist() == batch.input_ids[learned].tolist()
    assert case is not answers_of_one_token or len(set(labelled_rows(batch)[0].tolist())) == 1


def without_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Branches see only themselves."""
    forward = TextAttention.forward

    def alone(self: Any, x: Any, cu_seqlens: Any, table: Any, rows: Any, prompt_of: Any, max_seqlen: Any) -> Any:
        return forward(self, x, cu_seqlens, table, rows, None, max_seqlen)

    monkeypatch.setattr(TextAttention, "forward", alone)


def without_first_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token of a branch is taken for the first of a document."""
    monkeypatch.setattr(medmo, "labelled_rows", lambda batch: labelled_rows(replace(batch, prompt_of=None)))


def first_tokens_from_the_row_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token of a branch is predicted from the end of the branch before it."""

    def shifted(batch: Batch) -> Any:
        return learned_positions(batch) - 1, labelled_rows(batch)[1]

    monkeypatch.setattr(medmo, "labelled_rows", shifted)


def positions_that_start_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch is numbered as if it were a document."""
    hidden_states = medmo.MedMO.hidden_states

    def renumbered(self: Any, batch: Batch, *arguments: Any, **options: Any) -> Any:
        if batch.prompt_of is not None:
            starts = torch.where(batch.prompt_of >= 0, batch.position_ids[0][batch.cu_seqlens[:-1].long()], 0)
            shift = starts.repeat_interleave(batch.cu_seqlens.diff().long())
            batch = replace(batch, position_ids=batch.position_ids - shift)
        return hidden_states(self, batch, *arguments, **options)

    monkeypatch.setattr(medmo.MedMO, "hidden_states", renumbered)


@pytest.mark.parametrize(
    "violation",
    [without_prompts, without_first_tokens, first_tokens_from_the_row_before, positions_that_start_anew],
    ids=lambda violation: violation.__name__,
)
def test_a_wrong_tree_is_noticed(
    toy: Any,
    monkeypatch: pytest.MonkeyPatch,
    blind_batch: Callable[[], None],
    violation: Callable[[pytest.MonkeyPatch], None],
) -> None:
    model, items = toy.model(), branches(toy, toy.prompt("one", [(4, 6)]), [(0, 3), (0, 5)])
    batch = pack(items, share_prefixes=True)
    blind_batch()
    violation(monkeypatch)
    with pytest.raises(AssertionError):
        toy.assert_equals_separate_rows(model, items, [batch])


def test_a_batch_refuses_branches_numbered_anew(toy: Any) -> None:
    batch = pack(one_image(toy), share_prefixes=True)
    assert batch.prompt_of is not None
    positions = batch.position_ids.clone()
    start = int(batch.cu_seqlens[2])
    positions[:, start:] -= positions[:, start : start + 1]
    with pytest.raises(ValueError, match="one: its positions begin at .* branches go on from their prompt"):
        replace(batch, position_ids=positions)
