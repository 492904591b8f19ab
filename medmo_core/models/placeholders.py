"""Places of visual tokens in the text, and the document to blame when images and text do not fit.

Shapes: T packed tokens, M visual tokens.
"""

from __future__ import annotations

from torch import Tensor

from ..batch import Batch


def placeholder_index(
    batch: Batch, num_visual: int, token_ids: tuple[int, int], *, encoder: str, merge_size: int
) -> Tensor:
    """Return the positions of the placeholders, after counting them against the visual tokens.

    Args:
        batch: packed documents.
        num_visual: visual tokens that the images make, in order of appearance.
        token_ids: placeholders of images and of videos.
        encoder: whose grids to count by, for the message.
        merge_size: patches along each side of a visual token.

    Returns:
        (M,) int64.

    Raises:
        ValueError: other numbers; names the first document that does not fit.
    """
    image, video = token_ids
    is_visual = (batch.input_ids == image) | (batch.input_ids == video)
    index = is_visual.nonzero().squeeze(1)
    if index.shape[0] != num_visual:
        raise ValueError(_mismatch(batch, is_visual, num_visual, encoder, merge_size))
    return index


def _mismatch(batch: Batch, is_visual: Tensor, num_visual: int, encoder: str, merge_size: int) -> str:
    """Say which document's images and placeholders disagree, with both numbers."""
    grids = batch.image_grid_thw.get(encoder)
    if grids is not None and batch.image_index is not None:
        grids = grids[batch.image_index]
    sizes = [] if grids is None else (grids.prod(1) // merge_size**2).tolist()
    found = is_visual.sum().item()
    where = "; no document can be named"
    for index, flags in enumerate(is_visual.split(batch.lengths())):
        wanted = flags.sum().item()
        images = 0
        while wanted > 0 and sizes:
            wanted -= sizes.pop(0)
            images += 1
        if wanted != 0:
            where = f"; the first that does not fit is {batch.document_name(index)}, after {images} image(s)"
            break
    else:
        if sizes:
            last = batch.document_name(batch.num_documents - 1)
            where = f"; {len(sizes)} image(s) have no placeholder, after {last}"
    return f"the text holds {found} image placeholder tokens, the images make {num_visual} visual tokens{where}"
