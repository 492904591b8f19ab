"""The packed batch: documents laid end to end, no padding anywhere.

Shapes: T tokens of all documents, n documents, N patches, I images (or videos), p patch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from medmo_kernels.attention import check_prompts

from .looks import Looks
from .padded import PaddedImages, place_images, split_frames, split_patches

IGNORE_INDEX = -100


@dataclass
class Batch:
    """Packed documents and the images that appear in them.

    Several continuations of one beginning can be laid out as a prompt and its branches (`prompt_of`), each a separate
    document: the prompt is computed once, and a branch sees the whole of it and its own tokens. Boundaries,
    positions and prompts that contradict one another are refused where the tensors are on the host.

    Attributes:
        input_ids: (T,) int64 tokens of all documents, end to end.
        labels: (T,) int64 or None; -100 is ignored and `labels[t] == input_ids[t]` where token t is learned. The shift
            by one is the model's and never crosses a document, so a label on a document's first token does nothing.
        position_ids: (3, T) int64 temporal, height and width positions of M-RoPE, starting at 0 in every document; in
            a branch they go on after the largest of its prompt.
        cu_seqlens: (n + 1,) int32 document boundaries: 0, ..., T.
        patches: encoder name -> (N, width) rows, in merge order and in order of appearance. uint8 rows are raw pixels,
            floating rows are already normalised. Width is 3 * p * p [C, p, p] for stills and
            3 * temporal_patch_size * p * p [C, T, p, p] for frame pairs; a batch that mixes both repeats its stills.
        image_grid_thw: encoder name -> (I, 3) int64 grids in patches, in order of appearance in `input_ids`.
        image_index: (J,) int64, which image of `image_grid_thw` each image of the text is; None: each in turn. So an
            image that many documents are about is encoded once.
        sample_ids: one name per document, for error messages and for sampling seeds; may be empty.
        prompt_of: (n,) int64, the document whose tokens document j sees whole besides its own; -1: none. None: nothing
            is shared. Branches follow their prompt directly. A branch's first token is predicted from the prompt's
            last.
        tasks: one task per document, for losses by task; may be empty.
        features: (1 + D, M, E) what the vision tower makes of the images of `image_grid_thw` (`MedMO.encode_images`);
            the tower is not run then, and `patches` may be left out.
        looks: where attention should be while answers that are boxes are said: one entry for a prompt with its
            branches, or for a document; empty: attention is not supervised.
        coordinates: (T,) int64 or None, of each token that says a coordinate which number and place it is, as codes of
            `batch.coordinates.Coordinates`; -1 elsewhere.
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
    looks: tuple[Looks, ...] = ()
    coordinates: Tensor | None = None

    def __post_init__(self) -> None:
        total = self.input_ids.shape[0]
        if self.position_ids.shape != (3, total):
            raise ValueError(f"position_ids must be (3, {total}), got {tuple(self.position_ids.shape)}")
        if self.labels is not None and self.labels.shape != (total,):
            raise ValueError(f"labels must be ({total},), got {tuple(self.labels.shape)}")
        if self.coordinates is not None and self.coordinates.shape != (total,):
            raise ValueError(f"coordinates must be ({total},), got {tuple(self.coordinates.shape)}")
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
            document = int(self.document_of(torch.tensor(token)))
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

    def document_of(self, positions: Tensor) -> Tensor:
        """Return the index of the document that each token lies in, for token positions of any shape."""
        return torch.bucketize(positions, self.cu_seqlens[1:].long(), right=True)

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
            elif entry.name == "looks":
                changed[entry.name] = tuple(looks.map(function) for looks in value)
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
        """Pack what transformers' Qwen3-VL processor emits, one document per row.

        Shapes: B rows of S tokens with padding on either side; images and videos in row-major order of appearance.

        Args:
            input_ids: (B, S) int64.
            attention_mask: (B, S), 0 at padding; None when nothing is padded.
            pixel_values: (N, 3 * 2 * p * p) normalised patches of all images, or None.
            image_grid_thw: (I, 3) grids of the images.
            pixel_values_videos: (N, 3 * 2 * p * p) normalised frame pairs of all videos, or None.
            video_grid_thw: (V, 3) grids of the videos, whose frame pairs are separate vision blocks in `input_ids`.
            labels: (B, S) with -100 ignored, or None.
            encoder: name that the patches are filed under.
            image_token_id: id of the image placeholder.
            video_token_id: id of the video placeholder.
            merge_size: patches along one side of a visual token.
            sample_ids: one name per row, for messages.

        Raises:
            ValueError: placeholders and grids disagree.
        """
        keep = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        rows = [row[mask] for row, mask in zip(input_ids, keep, strict=True)]
        names = [sample_ids[i] if i < len(sample_ids) else f"row {i}" for i in range(len(rows))]
        images = PaddedImages(image_token_id, split_patches(pixel_values, image_grid_thw))
        videos = PaddedImages(video_token_id, split_patches(pixel_values_videos, split_frames(video_grid_thw)))
        shown = place_images(list(zip(names, rows, strict=True)), images, videos, merge_size)
        return cls(
            input_ids=torch.cat(rows),
            labels=None if labels is None else labels[keep],
            position_ids=shown.position_ids,
            cu_seqlens=torch.tensor([0, *map(len, rows)]).cumsum(0, dtype=torch.int32).to(input_ids.device),
            patches={encoder: torch.cat(shown.patches)} if shown.patches else {},
            image_grid_thw={encoder: torch.stack(shown.grids)} if shown.grids else {},
            sample_ids=tuple(sample_ids),
        )
