"""Many questions about one image: it enters the batch once, and nothing else changes."""

import random
from dataclasses import replace

import pytest
import torch

from medmo_core.batch import Batch
from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.data.sample_text import independent_turns
from medmo_core.datasets.embedded.dialogues import Dialogues
from medmo_core.inference.kit import Kit
from medmo_recipes.configs import CONFIGS
from medmo_recipes.training.model.kit import load_kit


@pytest.fixture(scope="module")
def kit() -> Kit:
    return load_kit(CONFIGS["debug_instruct"]().change(model={"dtype": "float64"}), "cpu")


@pytest.fixture(scope="module")
def items(kit: Kit) -> list[Document]:
    source, rng = Dialogues("train"), random.Random(3)
    samples = [source.get(index, rng) for index in (5, 400, 900)]
    return [item for sample in samples for item in kit.processor.encode_turns(sample)]


def apart(items: list[Document]) -> list[Document]:
    """The same documents, each with pictures of its own."""
    return [replace(i, patches={name: rows.copy() for name, rows in i.patches.items()}) for i in items]


def loss_and_gradients(kit: Kit, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    kit.model.zero_grad()
    loss = kit.model.loss(batch)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in kit.model.parameters() if p.grad is not None])


def test_a_shared_image_is_packed_once_and_changes_no_gradient(kit: Kit, items: list[Document]) -> None:
    shared, separate = pack(items), pack(apart(items))
    assert separate.image_index is None and shared.image_index is not None
    assert len(shared.image_grid_thw["qwen3_vl"]) == 3 < len(items) == len(separate.image_grid_thw["qwen3_vl"])
    (loss, gradients), (expected, expected_gradients) = (loss_and_gradients(kit, b) for b in (shared, separate))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-9, atol=1e-12)


def test_turns_share_what_they_begin_with(kit: Kit, items: list[Document]) -> None:
    """System turn, images and common words are computed once; loss and gradients are those of the turns apart."""
    shared = pack(items, share_prefixes=True)
    assert shared.prompt_of is not None and shared.image_index is None
    assert (shared.num_examples, shared.num_documents) == (len(items), len(items) + 3)
    assert shared.num_tokens < 0.85 * sum(len(item.input_ids) for item in items)
    tasks = {item.sample.id: item.sample.task for item in items}
    assert shared.tasks == tuple(tasks[name] for name in shared.sample_ids)
    loss, gradients = loss_and_gradients(kit, shared)
    expected, expected_gradients = loss_and_gradients(kit, pack(apart(items)))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-9, atol=1e-12)


def test_images_in_the_wrong_order_would_be_noticed(kit: Kit, items: list[Document]) -> None:
    shared = pack(items)
    assert shared.image_index is not None
    turned = replace(shared, image_index=(shared.image_index + 1) % 3)
    assert abs(loss_and_gradients(kit, turned)[0] - loss_and_gradients(kit, shared)[0]) > 1e-6


def test_turns_of_one_sample_stand_alone(kit: Kit, items: list[Document]) -> None:
    names = [item.sample.id for item in items]
    assert len(set(names)) == 3
    for item in items:
        text = kit.tokenizer.decode(item.input_ids.tolist(), skip_special=False)
        assert text.count("<|im_start|>assistant") == 1 and text.count("<|vision_start|>") == 1


def test_a_conversation_is_split_only_where_that_is_safe() -> None:
    image, text = {"type": "image"}, {"type": "text", "text": "and here?"}
    first = {"role": "user", "content": [image, text]}
    answer = {"role": "assistant", "content": "yes"}
    system = {"role": "system", "content": "be brief"}
    split = independent_turns([system, first, answer, {"role": "user", "content": "why?"}, answer])
    assert [len(turn) for turn in split] == [3, 3]
    assert split[1][1]["content"] == [image, {"type": "text", "text": "why?"}]
    second_image = [first, answer, first, answer]
    assert independent_turns(second_image) == [second_image]
    unanswered = [first, answer, {"role": "user", "content": "why?"}]
    assert independent_turns(unanswered) == [unanswered]


def test_boxes_of_a_dialogue_are_written_where_they_are_named(kit: Kit) -> None:
    source, rng = Dialogues("train"), random.Random(0)
    seen = 0
    for index in range(0, 400, 10):
        sample = source.get(index, rng)
        boxes = sample.truth_boxes()
        assert boxes is not None
        for question, reply in zip(sample.messages[::2], sample.messages[1::2], strict=True):
            if isinstance(reply["content"], str):
                continue
            labels = [boxes.labels[i] for i in reply["content"][0]["boxes"]]
            asked = question["content"][-1]["text"]
            assert all(label in asked or asked == "Locate all nuclei." for label in labels)
            seen += 1
    assert seen > 20
