"""M-RoPE: interleaved axes; text goes on after the largest position of an image, which advances by its longer side."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medmo_core.batch import mrope_position_ids
from medmo_core.modules.rope import mrope_table

transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.qwen3_vl.modeling_qwen3_vl")

IMAGE, VIDEO, START, END = 186, 187, 183, 184
SECTIONS, HEAD_DIM, THETA = (24, 20, 20), 128, 5e6
Document = list[tuple[str, int, int, int]]


def random_document(rng: random.Random) -> Document:
    """Text runs of (length, 0, 0) and stills and videos of (frames, height, width) patches."""
    document: Document = [("text", rng.randint(1, 5), 0, 0)]
    for _ in range(rng.randint(1, 4)):
        grid = (2 * rng.randint(1, 5), 2 * rng.randint(1, 5))
        document.append(("image", 1, *grid) if rng.random() < 0.5 else ("video", rng.randint(1, 4), *grid))
        document.append(("text", rng.randint(0, 6), 0, 0))
    return document


def tokens(document: Document) -> tuple[Tensor, list[list[int]], list[list[int]]]:
    """Return input ids, grids of stills, grids of videos. Each frame pair has a time stamp and its own block."""
    ids: list[int] = []
    stills, videos = [], []
    for kind, frames, height, width in document:
        if kind == "text":
            ids += [7] * frames
            continue
        (stills if kind == "image" else videos).append([frames, height, width])
        token = IMAGE if kind == "image" else VIDEO
        for _ in range(frames):
            ids += [*([9, 9] if kind == "video" else []), START, *[token] * (height * width // 4), END]
    return torch.tensor(ids), stills, videos


def our_positions(document: Document) -> Tensor:
    ids, _, _ = tokens(document)
    grids = torch.tensor([size for kind, *size in document if kind != "text"])
    return mrope_position_ids(ids, grids, merge_size=2, image_token_id=IMAGE, video_token_id=VIDEO)


def check_by_rule(positions_of: Callable[[Document], Tensor], document: Document) -> None:
    """Walk the document with the rule alone: every run starts at the largest position so far plus one."""
    positions = positions_of(document)
    at, following = 0, 0
    for kind, frames, height, width in document:
        if kind == "text":
            expected = torch.arange(following, following + frames).expand(3, -1)
            assert torch.equal(positions[:, at : at + frames], expected)
            at, following = at + frames, following + frames
            continue
        for _ in range(frames):
            lead = 3 if kind == "video" else 1  # time stamp and start token, or the start token
            at, following = at + lead, following + lead
            rows, columns = height // 2, width // 2
            block = positions[:, at : at + rows * columns]
            assert torch.equal(block[0], torch.full((rows * columns,), following))
            assert torch.equal(block[1], following + torch.arange(rows).repeat_interleave(columns))
            assert torch.equal(block[2], following + torch.arange(columns).repeat(rows))
            at, following = at + rows * columns, following + max(rows, columns)
            assert positions[:, at].tolist() == [following] * 3
            at, following = at + 1, following + 1
    assert at == positions.shape[1]


@pytest.mark.parametrize("seed", range(12))
def test_positions_follow_the_rule_and_transformers(seed: int) -> None:
    document = random_document(random.Random(seed))
    check_by_rule(our_positions, document)
    ids, stills, videos = tokens(document)
    config = transformers.Qwen3VLConfig(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START)
    with torch.device("meta"):
        theirs = modeling.Qwen3VLModel._from_config(config)
    kinds = ((ids == IMAGE).int() + 2 * (ids == VIDEO).int())[None]
    grids = [torch.tensor(grid) if grid else None for grid in (stills, videos)]
    expected, delta = theirs.get_rope_index(ids[None], kinds, *grids)
    positions = our_positions(document)
    assert torch.equal(positions, expected[:, 0])
    assert positions.max() + 1 - len(ids) == delta[0, 0]


def test_counting_an_images_tokens_is_noticed() -> None:
    def by_token_count(document: Document) -> Tensor:
        return torch.arange(len(tokens(document)[0])).expand(3, -1)

    with pytest.raises(AssertionError):
        check_by_rule(by_token_count, [("text", 2, 0, 0), ("image", 1, 4, 6), ("text", 3, 0, 0)])


def interleaved(position_ids: Tensor) -> tuple[Tensor, Tensor]:
    return mrope_table(position_ids, HEAD_DIM, THETA, SECTIONS)


def in_blocks(position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Give the axes consecutive frequencies, as Qwen2-VL did."""
    frequencies = 1.0 / (THETA ** (torch.arange(0, HEAD_DIM, 2) / HEAD_DIM))
    axis = torch.arange(3).repeat_interleave(torch.tensor(SECTIONS))
    angles = position_ids.float()[axis].T * frequencies
    return angles.cos(), angles.sin()


def check_table(table_of: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    rope = {"rope_type": "default", "rope_theta": THETA, "mrope_section": list(SECTIONS), "mrope_interleaved": True}
    config = transformers.Qwen3VLConfig(text_config={"head_dim": HEAD_DIM, "rope_parameters": rope}).text_config
    rotary = modeling.Qwen3VLTextRotaryEmbedding(config)
    position_ids = torch.randint(0, 900, (3, 41), generator=torch.Generator().manual_seed(0))
    cos, sin = rotary(torch.zeros(1, 41, 1), position_ids[:, None])
    ours = table_of(position_ids)
    for mine, theirs in zip(ours, (cos, sin), strict=True):
        torch.testing.assert_close(mine, theirs[0, :, : HEAD_DIM // 2], rtol=0, atol=1e-6)


def test_axes_are_interleaved_as_in_transformers() -> None:
    check_table(interleaved)


def test_axes_in_blocks_are_noticed() -> None:
    with pytest.raises(AssertionError):
        check_table(in_blocks)
