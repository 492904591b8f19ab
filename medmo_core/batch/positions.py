"""Position numbers of M-RoPE: time, height and width of every token of a document, as Qwen3-VL counts them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def mrope_position_ids(
    input_ids: Tensor,
    image_grid_thw: Tensor | None,
    *,
    merge_size: int,
    image_token_id: int,
    video_token_id: int,
    sample_id: str = "document",
) -> Tensor:
    """Number one document's tokens along time, height and width as Qwen3-VL does.

    Text advances all three axes by one a token. A vision block starts where the text stopped, spans its token grid,
    and the text goes on after the larger of its two sides. A video is one block per frame pair (the timestamps between
    them are text), so its time axis never runs inside a block.

    Shapes: T tokens of one document, I images or videos in order of appearance.

    Args:
        input_ids: (T,) tokens of one document.
        image_grid_thw: (I, 3) grids in patches; videos as one row with t > 1 or as t rows with t = 1. None: no images.
        merge_size: patches along one side of a visual token.
        image_token_id: id of the image placeholder.
        video_token_id: id of the video placeholder.
        sample_id: name used in messages.

    Returns:
        (3, T) int64.

    Raises:
        ValueError: the placeholders do not fit the grids.

    Reference: Qwen3-VL, `get_rope_index`.
    """
    ids = input_ids.tolist()
    runs = vision_runs(input_ids, (image_token_id, video_token_id))
    blocks = [] if image_grid_thw is None else _vision_blocks(image_grid_thw, runs, video_token_id)
    if len(blocks) != len(runs):
        raise ValueError(
            f"{sample_id}: {len(blocks)} image(s) or frame pair(s) given, {len(runs)} block(s) of placeholders in the "
            "text: the two numbers must agree"
        )
    out = torch.empty(3, len(ids), dtype=torch.int64)
    start, position = 0, 0  # the text not yet numbered begins at token `start`, with this position
    for token, (frames, height, width) in zip(runs, blocks, strict=True):
        begin = ids.index(token, start)
        size = (frames, height // merge_size, width // merge_size)
        stop = begin + size[0] * size[1] * size[2]
        out[:, start:begin] = torch.arange(position, position + begin - start)
        position += begin - start
        found = _run_length(ids, begin)
        if found != stop - begin:
            raise ValueError(
                f"{sample_id}: an image of {frames} x {height} x {width} patches makes {stop - begin} visual tokens, "
                f"the text holds {found} placeholders at token {begin}"
            )
        axes = torch.meshgrid(*(torch.arange(length) for length in size), indexing="ij")
        out[:, begin:stop] = torch.stack(axes).reshape(3, -1) + position
        position += max(size[1], size[2])
        start = stop
    out[:, start:] = torch.arange(position, position + len(ids) - start)
    return out.to(input_ids.device)


def _vision_blocks(grids: Tensor, runs: list[int], video_token_id: int) -> list[tuple[int, int, int]]:
    """Return the grid of every run of placeholders; a video's grid serves one run per frame pair."""
    blocks: list[tuple[int, int, int]] = []
    for frames, height, width in grids.tolist():
        is_video = len(blocks) < len(runs) and runs[len(blocks)] == video_token_id
        blocks += [(1, height, width)] * frames if is_video else [(frames, height, width)]
    return blocks


def vision_runs(input_ids: Tensor, placeholders: Iterable[int]) -> list[int]:
    """Return the placeholder of every run of equal placeholders."""
    tokens = torch.unique_consecutive(input_ids)
    wanted = set(placeholders)
    return [token for token in tokens.tolist() if token in wanted]


def _run_length(ids: list[int], begin: int) -> int:
    return next((i for i in range(begin, len(ids)) if ids[i] != ids[begin]), len(ids)) - begin
