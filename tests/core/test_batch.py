"""The packed batch: positions by hand, packing, and what it refuses."""

import pytest
import torch

from medmo_core.batch import Batch, PatchSpec, mrope_position_ids
from medmo_core.models import MedMO
from medmo_core.models.targets import labelled_rows, learned_positions

IMAGE, VIDEO, START, END = 90, 91, 87, 88
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
RULE = {"merge_size": 2, **IDS}


def text_batch(ids: list[int], **changes) -> Batch:
    bounds = changes.pop("cu_seqlens", torch.tensor([0, len(ids)], dtype=torch.int32))
    fields = {
        "input_ids": torch.tensor(ids),
        "labels": None,
        "position_ids": torch.cat([torch.arange(length) for length in bounds.diff()]).expand(3, -1),
        "cu_seqlens": bounds,
    }
    return Batch(**{**fields, **changes})


def debug_model() -> MedMO:
    torch.manual_seed(0)
    return MedMO.from_config("debug", vocab_size=100, vision_start_token_id=START, vision_end_token_id=END, **IDS)


def test_patch_spec_states_widths() -> None:
    spec = PatchSpec(patch_size=16, merge_size=2, temporal_patch_size=2)
    assert (spec.token_px, spec.still_width) == (32, 768)


def test_positions_of_text_image_text_by_hand() -> None:
    ids = torch.tensor([5, START, *[IMAGE] * 6, END, 7])
    positions = mrope_position_ids(ids, torch.tensor([[1, 4, 6]]), **RULE)
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


@pytest.mark.parametrize("grids", [[[2, 2, 4]], [[1, 2, 4], [1, 2, 4]]], ids=["one-grid", "grid-per-pair"])
def test_positions_of_a_video_count_each_frame_pair_as_a_block(grids: list[list[int]]) -> None:
    ids = torch.tensor([5, VIDEO, VIDEO, 6, VIDEO, VIDEO, 7])
    positions = mrope_position_ids(ids, torch.tensor(grids), **RULE)
    assert positions.tolist() == [[0, 1, 1, 3, 4, 4, 6], [0, 1, 1, 3, 4, 4, 6], [0, 1, 2, 3, 4, 5, 6]]


def test_text_positions_count_up() -> None:
    assert torch.equal(mrope_position_ids(torch.arange(5), None, **RULE), torch.arange(5).expand(3, 5))


@pytest.mark.parametrize(
    ("ids", "grids", "words"),
    [
        ([1, IMAGE, 2], [[1, 2, 2], [1, 2, 2]], ["case-7", "2 image", "1 block"]),
        ([1, IMAGE, 2, IMAGE], [[1, 2, 2]], ["case-7", "1 image", "2 block"]),
        ([1, IMAGE], None, ["case-7", "0 image", "1 block"]),
        ([1, IMAGE, IMAGE, 2], [[1, 2, 6]], ["case-7", "3 visual tokens", "2 placeholders", "token 1"]),
        ([1, *[IMAGE] * 5], [[1, 4, 4]], ["case-7", "4 visual tokens", "5 placeholders"]),
    ],
)
def test_images_and_placeholders_must_agree(ids: list[int], grids: list | None, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        grid = None if grids is None else torch.tensor(grids)
        mrope_position_ids(torch.tensor(ids), grid, sample_id="case-7", **RULE)
    for word in words:
        assert word in str(error.value)


def test_model_names_the_document_with_too_many_images() -> None:
    model = debug_model()
    batch = text_batch(
        [1, 2, IMAGE, 3, 4, 5],
        cu_seqlens=torch.tensor([0, 2, 6], dtype=torch.int32),
        patches={"qwen3_vl": torch.zeros(8, 768, dtype=torch.uint8)},
        image_grid_thw={"qwen3_vl": torch.tensor([[1, 2, 2], [1, 2, 2]])},
        sample_ids=("first", "second"),
    )
    with pytest.raises(ValueError, match=r"1 image placeholder tokens, the images make 2 visual tokens.*second"):
        model.loss(text_batch_with_labels(batch))


def text_batch_with_labels(batch: Batch) -> Batch:
    batch.labels = batch.input_ids.clone()
    return batch


def test_model_names_the_first_document_that_does_not_fit() -> None:
    batch = text_batch(
        [IMAGE, 1, IMAGE, IMAGE, IMAGE],
        cu_seqlens=torch.tensor([0, 2, 5], dtype=torch.int32),
        patches={"qwen3_vl": torch.zeros(8, 768, dtype=torch.uint8)},
        image_grid_thw={"qwen3_vl": torch.tensor([[1, 2, 2], [1, 2, 2]])},
        sample_ids=("first", "second"),
    )
    with pytest.raises(
        ValueError, match=r"4 image placeholder.*2 visual tokens.*does not fit is second, after 1 image"
    ):
        debug_model()(batch)


def test_images_shown_again_are_counted_each_time() -> None:
    """The first image stands in two documents; the third document lacks a placeholder."""
    batch = text_batch(
        [IMAGE, 1, IMAGE, 2, IMAGE, 3],
        cu_seqlens=torch.tensor([0, 2, 4, 6], dtype=torch.int32),
        patches={"qwen3_vl": torch.zeros(12, 768, dtype=torch.uint8)},
        image_grid_thw={"qwen3_vl": torch.tensor([[1, 2, 2], [1, 2, 4]])},
        image_index=torch.tensor([0, 0, 1]),
        sample_ids=("first", "second", "third"),
    )
    with pytest.raises(ValueError, match="3 image placeholder.*4 visual tokens.*does not fit is third, after 1 image"):
        debug_model()(batch)


def test_placeholders_without_any_image_are_refused() -> None:
    with pytest.raises(ValueError, match="1 image placeholder tokens, the images make 0"):
        debug_model()(text_batch([1, IMAGE, 2]))


def test_wrong_patch_width_names_both_widths() -> None:
    batch = text_batch(
        [IMAGE, 1],
        patches={"qwen3_vl": torch.zeros(4, 588, dtype=torch.uint8)},
        image_grid_thw={"qwen3_vl": torch.tensor([[1, 2, 2]])},
    )
    with pytest.raises(ValueError, match=r"588 values each; the encoder takes 768 .* or 1536"):
        debug_model()(batch)


def test_rows_and_grids_must_agree() -> None:
    batch = text_batch(
        [IMAGE, 1],
        patches={"qwen3_vl": torch.zeros(5, 768, dtype=torch.uint8)},
        image_grid_thw={"qwen3_vl": torch.tensor([[1, 2, 2]])},
    )
    with pytest.raises(ValueError, match="hold 4 patches, 5 rows"):
        debug_model()(batch)


def test_shapes_are_checked_when_a_batch_is_made() -> None:
    with pytest.raises(ValueError, match=r"position_ids must be \(3, 3\)"):
        text_batch([1, 2, 3], position_ids=torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels must be \(3,\)"):
        text_batch([1, 2, 3], labels=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"qwen3_vl.*grids for \[\]"):
        text_batch([1, 2, 3], patches={"qwen3_vl": torch.zeros(4, 768)})


def test_loss_needs_labels() -> None:
    with pytest.raises(ValueError, match="no labels"):
        debug_model().loss(text_batch([1, 2, 3]))


def test_from_padded_refuses_left_over_and_missing_images() -> None:
    ids = torch.tensor([[1, IMAGE, 2]])
    pixels, grid = torch.zeros(8, 1536), torch.tensor([[1, 2, 2], [1, 2, 2]])
    with pytest.raises(ValueError, match=r"2 image\(s\).* 1 block.*row 0"):
        Batch.from_padded(ids, None, pixels, grid, **IDS)
    with pytest.raises(ValueError, match=r"scan-1: more blocks of placeholder 90 than the 0 image"):
        Batch.from_padded(ids, None, sample_ids=("scan-1",), **IDS)
    with pytest.raises(ValueError, match="grids hold 8 patches, 7 rows"):
        Batch.from_padded(ids, None, pixels[:7], grid, **IDS)


def test_documents_and_moves() -> None:
    batch = text_batch([1, 2, 3, 4, 5], cu_seqlens=torch.tensor([0, 2, 5], dtype=torch.int32), sample_ids=("a", "b"))
    assert (batch.num_tokens, batch.num_documents, batch.max_seqlen, batch.lengths()) == (5, 2, 3, [2, 3])
    assert (batch.num_examples, batch.prompt_of, batch.tasks) == (2, None, ())
    moved = batch.to("meta")
    assert moved.input_ids.device.type == "meta"
    assert moved.labels is None
    assert moved.sample_ids == ("a", "b")
    assert batch.input_ids.device.type == "cpu"


def test_a_label_never_crosses_a_document() -> None:
    """The first token of a document has no predecessor: its label adds nothing."""
    model = debug_model()
    bounds = torch.tensor([0, 3, 6], dtype=torch.int32)
    positions = torch.arange(3).repeat(2).expand(3, 6)
    ids = [1, 2, 3, 4, 5, 6]
    labels = torch.tensor([-100, -100, 3, 4, 5, -100])
    batch = text_batch(ids, labels=labels, cu_seqlens=bounds, position_ids=positions)
    logps = model.token_logprobs(batch)
    full = model(batch).log_softmax(-1)
    torch.testing.assert_close(logps, torch.stack([full[1, 3], full[3, 5]]))
    torch.testing.assert_close(model.loss(batch, "sum"), -logps.sum())
    torch.testing.assert_close(model.loss(batch), -logps.mean())


def test_a_batch_without_any_label_has_zero_loss_and_a_graph() -> None:
    model = debug_model()
    loss = model.loss(text_batch([1, 2, 3], labels=torch.full((3,), -100)))
    loss.backward()
    assert loss.item() == 0.0


def tree_batch(**changes) -> Batch:
    """A document, then a prompt with two branches."""
    fields = {
        "cu_seqlens": torch.tensor([0, 2, 5, 7, 8], dtype=torch.int32),
        "position_ids": torch.tensor([0, 1, 0, 1, 2, 3, 4, 3]).expand(3, 8),
        "prompt_of": torch.tensor([-1, -1, 1, 1]),
        "labels": torch.tensor([-100, 11, -100, -100, -100, 15, -100, 17]),
        "sample_ids": ("a", "b", "b", "b"),
        "tasks": ("vqa", "report", "report", "report"),
    }
    return text_batch(list(range(10, 18)), **{**fields, **changes})


def test_a_prompt_is_a_document_but_no_example() -> None:
    batch = tree_batch()
    assert (batch.num_documents, batch.num_examples, batch.max_seqlen) == (4, 3, 3)
    moved = batch.to("meta")
    assert moved.prompt_of is not None and moved.prompt_of.device.type == "meta"
    assert moved.tasks == batch.tasks


def test_the_first_token_of_a_branch_is_predicted_from_its_prompt() -> None:
    rows, targets = labelled_rows(tree_batch())
    assert (rows.tolist(), targets.tolist()) == ([0, 4, 4], [11, 15, 17])
    plain = tree_batch(prompt_of=None, position_ids=torch.tensor([0, 1, 0, 1, 2, 0, 1, 0]).expand(3, 8))
    assert labelled_rows(plain)[0].tolist() == [0]  # the first token of a document has nothing before it
    assert learned_positions(tree_batch()).tolist() == [1, 5, 7]


def test_the_document_of_a_position_ends_at_its_boundary() -> None:
    batch = tree_batch()
    expected = [index for index, length in enumerate(batch.lengths()) for _ in range(length)]
    assert batch.document_of(torch.arange(batch.num_tokens)).tolist() == expected
    assert batch.document_of(torch.tensor(batch.num_tokens - 1)).item() == batch.num_documents - 1


@pytest.mark.parametrize(
    ("prompts", "words"),
    [([-1, -1, 1, -1], "its positions begin at"), ([-1, -1, 0, 0], "branches must follow their prompt directly"),
     ([-1, -1, 1, 2], "which has a prompt itself"), ([-1, -1, 1], r"prompt_of must be \(4,\)")],
)  # fmt: skip
def test_prompts_that_cannot_be_are_refused(prompts: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tree_batch(prompt_of=torch.tensor(prompts))
