"""The packed batch: documents laid end to end, no padding anywhere.

Shapes: T tokens of all documents, n documents, N patches, I images (or videos), p patch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from medmo_kernels.attention import check_prompts

IGNORE_INDEX = -100


@dataclass(frozen=True)
class PatchSpec:
    """What an encoder eats: the size, the order and the normalisation of its patches.

    Units: `patch_size` in pixels; `image_mean` and `image_std` of pixel values scaled to [0, 1], per RGB channel.

    Attributes:
        patch_size: side of one square patch.
        merge_size: side, in patches, of the square that becomes one visual token; patches arrive in merge order.
        temporal_patch_size: frames that a video row holds; stills always hold one.
        image_mean: subtracted from the scaled pixel.
        image_std: the scaled and centred pixel is divided by it.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int = 1
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def token_px(self) -> int:
        """Pixels that one visual token covers along each side."""
        return self.patch_size * self.merge_size

    @property
    def still_width(self) -> int:
        """Values in the row of one still patch: 3 * p * p."""
        return 3 * self.patch_size**2

    @property
    def frame_pair_width(self) -> int:
        """Values in the row of one video patch: 3 * temporal_patch_size * p * p."""
        return self.still_width * self.temporal_patch_size


@dataclass
class Batch:
    """Hold packed documents and the images that appear in them.

    Several continuations of one beginning can be laid out as a prompt and its branches (`prompt_of`), each a document
    of its own: the prompt is computed once, and a branch sees the whole of it and its own tokens. Boundaries,
    positions and prompts that contradict one another are refused where the tensors are on the host.

    Attributes:
        input_ids: (T,) int64 tokens of all documents, end to end.
        labels: (T,) int64 or None; -100 is ignored and `labels[t] == input_ids[t]` where token t is learned. The shift
            by one is the model's and never crosses a document, so a label on a document's first token does nothing.
        position_ids: (3, T) int64 temporal, height and width positions of M-RoPE, starting at 0 in every document; in
            a branch they go on after the largest of its prompt.
        cu_seqlens: (n + 1,) int32 document boundaries: 0, ..., T.
        patches: per encoder name (N, width), in merge order and in order of appearance. uint8 rows are raw pixels,
            floating rows are already normalised. Width is 3 * p * p [C, p, p] for stills and
            3 * temporal_patch_size * p * p [C, T, p, p] for frame pairs; a batch that mixes both repeats its stills.
        image_grid_thw: per encoder name (I, 3) int64 grids in patches, in order of appearance in `input_ids`.
        image_index: (J,) int64, which image of `image_grid_thw` each image of the text is; None: each in turn. So an
            image that many documents are about is encoded once.
        sample_ids: one name per document, for error messages and for sampling seeds; may be empty.
        prompt_of: (n,) int64, the document whose tokens document j sees whole besides its own; -1: none. None: nothing
            is shared. Branches follow their prompt directly. A branch's first token is predicted from the prompt's
            last.
        tasks: one task per document, for losses by task; may be empty.
        features: (1 + D, M, E) what the vision tower makes of the images of `image_grid_thw` (`MedMO.encode_images`);
            the tower is not run then, and `patches` may be left out.
    """

    input_ids: Tensor
    labels: Tensor | None
    position_ids: Tensor
    cu_seqlens: Tensor
    patches: dict[str, Tensor] = field(default_factory=dict)
    image_grid_thw: dict[str, Tensor] = field(default_factory=dict)
    image_index: Tensor | None = None
    sample_ids: tuple[str, ...] = ()
    prompt_of: Tensor | None = None
    tasks: tuple[str, ...] = ()
    features: Tensor | None = None

    def __post_init__(self) -> None:
        total = self.input_ids.shape[0]
        if self.position_ids.shape != (3, total):
            raise ValueError(f"position_ids must be (3, {total}), got {tuple(self.position_ids.shape)}")
        if self.labels is not None and self.labels.shape != (total,):
            raise ValueError(f"labels must be ({total},), got {tuple(self.labels.shape)}")
        if self.features is None and self.patches.keys() != self.image_grid_thw.keys():
            raise ValueError(
                f"patches are given for {sorted(self.patches)}, grids for {sorted(self.image_grid_thw)}: name the same"
            )
        if self.prompt_of is not None and self.prompt_of.shape != (self.num_documents,):
            raise ValueError(f"prompt_of must be ({self.num_documents},), got {tuple(self.prompt_of.shape)}")
        if self.cu_seqlens.device.type == self.position_ids.device.type == "cpu":
            self._check_documents()

    def _check_documents(self) -> None:
        """Refuse boundaries, prompts and positions that cannot all be right."""
        bounds, time = self.cu_seqlens.long(), self.position_ids[0]
        if bounds[0] != 0 or bounds[-1] != self.num_tokens or not bool((bounds.diff() > 0).all()):
            raise ValueError(
                f"cu_seqlens must rise from 0 to {self.num_tokens}, the number of tokens, with every document; "
                f"got {self.cu_seqlens.tolist()}"
            )
        starts = bounds[:-1]
        expected = torch.zeros_like(starts)
        if self.prompt_of is not None:
            check_prompts(tuple(self.prompt_of.tolist()))
            for branch, prompt in enumerate(self.prompt_of.tolist()):
                if prompt >= 0:
                    expected[branch] = self.position_ids[:, bounds[prompt] : bounds[prompt + 1]].max() + 1
        wrong = (self.position_ids[:, starts] != expected).any(dim=0).nonzero().flatten().tolist()
        if wrong:
            first, token = wrong[0], int(starts[wrong[0]])
            raise ValueError(
                f"{self.document_name(first)}: its positions begin at {self.position_ids[:, token].tolist()}, expected "
                f"{int(expected[first])}: documents start at 0 and branches go on from their prompt"
            )
        falls = time.diff() < 0
        falls[starts[1:] - 1] = False
        if bool(falls.any()):
            token = int(falls.nonzero()[0]) + 1
            document = int(torch.bucketize(token, bounds, right=True)) - 1
            raise ValueError(
                f"{self.document_name(document)}: positions fall from {int(time[token - 1])} to {int(time[token])} at "
                f"token {token}: packed documents need a boundary in cu_seqlens each"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return self.input_ids.shape[0]

    @property
    def num_documents(self) -> int:
        """Documents in the batch, prompts and branches counted one by one."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def num_examples(self) -> int:
        """Documents that are not only the shared beginning of others: what was packed (reads `prompt_of` back)."""
        prompts = set() if self.prompt_of is None else set(self.prompt_of.tolist())
        return self.num_documents - len(prompts - {-1})

    @property
    def max_seqlen(self) -> int:
        """Length of the longest document (reads the boundaries back to the host)."""
        return max(self.lengths(), default=0)

    def lengths(self) -> list[int]:
        """Return the number of tokens of each document."""
        return self.cu_seqlens.diff().tolist()

    def document_name(self, index: int) -> str:
        """Return the sample id of one document, or its index where no ids were given."""
        return self.sample_ids[index] if index < len(self.sample_ids) else f"document {index}"

    def shown_rows(self, encoder: str, merge_size: int) -> Tensor | None:
        """Return the rows of the visual tokens in order of appearance in the text; None where they are in that order.

        Args:
            encoder: whose grids to count by.
            merge_size: patches along each side of a visual token.
        """
        if self.image_index is None:
            return None
        counts = self.image_grid_thw[encoder].prod(dim=1) // merge_size**2
        lengths = counts[self.image_index]
        starts = (counts.cumsum(0) - counts)[self.image_index] - (lengths.cumsum(0) - lengths)
        return torch.arange(int(lengths.sum()), device=lengths.device) + starts.repeat_interleave(lengths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return a copy whose tensors live on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked host memory, for asynchronous copies to a GPU."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                changed[entry.name] = function(value)
            elif isinstance(value, dict):
                changed[entry.name] = {name: function(tensor) for name, tensor in value.items()}
        return replace(self, **changed)

    @classmethod
    def from_padded(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        encoder: str = "qwen3_vl",
        image_token_id: int,
        video_token_id: int,
        merge_size: int = 2,
        sample_ids: Sequence[str] = (),
    ) -> Batch:
        """Pack what transformers' Qwen3-VL processor emits.

        Shapes: B rows of S tokens with padding on either side; images and videos in row-major order of appearance.

        Args:
            input_ids: (B, S) int64.
            attention_mask: (B, S), 0 at padding; None when nothing is padded.
            pixel_values: (N, 3 * 2 * p * p) normalised patches of all images, or None.
            image_grid_thw: (I, 3) grids of the images.
            pixel_values_videos: (N, 3 * 2 * p * p) normalised frame pairs of all videos, or None.
            video_grid_thw: (V, 3) grids of the videos; each frame pair is a vision block of its own in `input_ids`.
            labels: (B, S) with -100 ignored, or None.
            encoder: the name under which the patches are filed.
            image_token_id: id of the image placeholder.
            video_token_id: id of the video placeholder.
            merge_size: patches along one side of a visual token.
            sample_ids: one name per row, for messages.

        Returns:
            A batch with one document per row. Video grids are split into one grid per frame pair.

        Raises:
            ValueError: placeholders and grids disagree.
        """
        keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        rows = [row[mask] for row, mask in zip(input_ids, keep, strict=True)]
        names = [sample_ids[i] if i < len(sample_ids) else f"row {i}" for i in range(len(rows))]
        waiting = {
            image_token_id: _split_patches(pixel_values, image_grid_thw),
            video_token_id: _split_patches(pixel_values_videos, _split_frames(video_grid_thw)),
        }
        given = {token: len(blocks) for token, blocks in waiting.items()}
        patches: list[Tensor] = []
        grids: list[Tensor] = []
        positions: list[Tensor] = []
        for name, row in zip(names, rows, strict=True):
            first = len(grids)
            for token in _vision_runs(row, waiting):
                if not waiting[token]:
                    raise ValueError(
                        f"{name}: more blocks of placeholder {token} than the {given[token]} image(s) given"
                    )
                rows_of_patches, grid = waiting[token].pop(0)
                patches.append(rows_of_patches)
                grids.append(grid)
            position_ids = mrope_position_ids(
                row,
                torch.stack(grids[first:]) if len(grids) > first else None,
                merge_size=merge_size,
                image_token_id=image_token_id,
                video_token_id=video_token_id,
                sample_id=name,
            )
            positions.append(position_ids)
        if sum(given.values()) > len(grids):
            raise ValueError(
                f"{sum(given.values())} image(s) and frame pair(s) given, {len(grids)} block(s) of placeholders in the "
                f"text, which ends with {names[-1]}"
            )
        lengths = torch.tensor([0, *(len(row) for row in rows)])
        return cls(
            input_ids=torch.cat(rows),
            labels=None if labels is None else labels[keep],
            position_ids=torch.cat(positions, dim=1),
            cu_seqlens=lengths.cumsum(0, dtype=torch.int32).to(input_ids.device),
            patches={encoder: torch.cat(patches)} if patches else {},
            image_grid_thw={encoder: torch.stack(grids)} if grids else {},
            sample_ids=tuple(sample_ids),
        )


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
    runs = _vision_runs(input_ids, (image_token_id, video_token_id))
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


def _vision_runs(input_ids: Tensor, placeholders: Iterable[int]) -> list[int]:
    """Return the placeholder of every run of equal placeholders."""
    tokens = torch.unique_consecutive(input_ids)
    wanted = set(placeholders)
    return [token for token in tokens.tolist() if token in wanted]


def _run_length(ids: list[int], begin: int) -> int:
    return next((i for i in range(begin, len(ids)) if ids[i] != ids[begin]), len(ids)) - begin


def _split_frames(grid_thw: Tensor | None) -> Tensor | None:
    """Turn (V, 3) video grids into one (1, h, w) grid per frame pair."""
    if grid_thw is None:
        return None
    split = grid_thw.repeat_interleave(grid_thw[:, 0], dim=0).clone()
    split[:, 0] = 1
    return split


def _split_patches(patches: Tensor | None, grid_thw: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Cut the rows of patches at the grids."""
    if patches is None or grid_thw is None:
        return []
    sizes = grid_thw.prod(dim=1).tolist()
    if sum(sizes) != patches.shape[0]:
        raise ValueError(f"the grids hold {sum(sizes)} patches, {patches.shape[0]} rows of patches were given")
    return list(zip(patches.split(sizes), grid_thw, strict=True))
