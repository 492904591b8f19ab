"""Images as a caller has them, file, Pillow image, array or loaded image, made ready to be shown to a model."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data.images.load import ImageError, LoadedImage, from_pillow, load_image

AnyImage = str | Path | Image.Image | NDArray[np.uint8] | LoadedImage
"""A file (PNG, JPEG, TIFF, DICOM, NIfTI), a Pillow image, an (H, W) or (H, W, 3) uint8 array, or a loaded image."""


def open_image(
    image: AnyImage,
    *,
    frame: int | None = None,
    slice_index: int | None = None,
    plane: str = "axial",
    window: Any = None,
) -> LoadedImage:
    """Return an image as it will be shown: RGB, with its place in the patient where the file knows it.

    Args:
        image: a file is decoded, everything else is taken as it is.
        frame: frame of a multi-frame file, from 0; None: the first.
        slice_index: slice of a volume, from 0; None: the middle one.
        plane: direction in which a volume is sliced: axial, coronal or sagittal.
        window: grey levels of a deep picture, see `load_image`.

    Raises:
        ImageError: the image cannot be read as asked, or is of a type or shape that no image has.
    """
    if isinstance(image, str | Path):
        return load_image(image, frame=frame, slice_index=slice_index, plane=plane, window=window)
    if frame is not None or slice_index is not None:
        raise ImageError(f"frame and slice_index choose from a file, but the image is {_kind(image)}; leave them out")
    if isinstance(image, Image.Image):
        return from_pillow(image, window=window)
    if window is not None:
        raise ImageError(f"window chooses grey levels of a file, but the image is {_kind(image)}; leave it out")
    if isinstance(image, LoadedImage):
        _check_pixels(image.pixels)
        return image
    if isinstance(image, np.ndarray):
        pixels = np.stack([image] * 3, axis=-1) if image.ndim == 2 and image.dtype == np.uint8 else image
        _check_pixels(pixels)
        return LoadedImage(pixels)
    raise ImageError(
        f"the image is {_kind(image)}, expected the path of a file, a Pillow image, a NumPy array or a LoadedImage"
    )


def _check_pixels(pixels: NDArray[Any]) -> None:
    fits = pixels.ndim == 3 and pixels.shape[2] == 3
    if fits and pixels.size and pixels.dtype == np.uint8:
        return
    if not pixels.size:
        fix = "it holds no pixel"
    elif pixels.ndim == 3 and pixels.shape[2] == 4:
        fix = "drop its alpha channel, as in x[..., :3]"
    elif pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        fix = "move its channels to the end, as in x.transpose(1, 2, 0)"
    elif not fits and pixels.ndim != 2:
        fix = "give one picture at a time"
    else:
        fix = "scale its values to 0 to 255 and cast it, as in (255 * x).astype('uint8')"
    raise ImageError(
        f"the image is an array of shape {pixels.shape} of {pixels.dtype}, expected (H, W) or (H, W, 3) of uint8: {fix}"
    )


def _kind(value: object) -> str:
    return f"of type {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")
