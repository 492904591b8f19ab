"""DICOM files opened and decoded; only the tags a picture needs are ever read.

The tags that name a person are not on the list, so they cannot reach a message, a log or a record. This does not
replace a validated de-identifier: text burned into the pixels stays.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...optional import import_optional
from .dicom_values import (
    CODE_STRING,
    FrameView,
    bits_lie_high,
    is_colour,
    lowered,
    measured,
    padding_of,
    show_colour,
    show_grey,
)
from .loaded import COPY_AGAIN, ImageError, LoadedImage, silent_libraries

TAGS = [
    *("TransferSyntaxUID", "Modality", "BodyPartExamined", "ViewPosition", "ImageLaterality", "Laterality"),
    *("NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
]
PLACE_TAGS = [
    *("TransferSyntaxUID", "Rows", "Columns", "NumberOfFrames", "SeriesInstanceUID"),
    *("SamplesPerPixel", "PhotometricInterpretation"),
    *("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
SUFFIXES = (".dcm", ".dicom", ".ima")
PLUGINS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
MAX_INFLATED_BYTES = 2**28
"""Largest size of a deflated file once it is inflated: far above any real one, far below what hurts."""
INFLATED_AT_A_TIME = 2**14  # deflated bytes, of which each becomes a thousand at most
META_START = 144  # preamble, magic bytes and the element that states how long the rest of the file's meta header is


def is_dicom(path: Path) -> bool:
    """Say whether a file is DICOM: by its magic bytes, or by its suffix where an old file has none."""
    return has_magic(path) or path.suffix.lower() in SUFFIXES


def has_magic(path: Path) -> bool:
    """Say whether a file has DICOM's magic bytes."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_dicom(path: Path, *, frame: int | None = None, window: object = None, max_pixels: int) -> LoadedImage:
    """Read one frame of a DICOM image as it is meant to be shown.

    Args:
        path: the file.
        frame: frame of a multi-frame file, from 0; None: the first.
        window: name or range, see `load_image`; None: the file's VOI LUT or first window, else soft tissue for
            CT, else the whole range of 8-bit pixels, else the 0.5 and 99.5 percentile without padding.
        max_pixels: refuse larger frames before decoding them.

    Raises:
        ImageError: not an image, truncated, over the limit, no such frame, or no decoder for its compression.
    """
    with silent_libraries():
        dataset = open_dicom(path)
        info, num_frames = facts_of(dataset), frame_count(dataset)
        index = frame or 0
        if not 0 <= index < num_frames:
            raise ImageError(f"{path}: frame is {frame}, but there are {num_frames} frames (0 to {num_frames - 1})")
        width, height = picture_size(path, dataset)
        if width * height > max_pixels:
            raise ImageError(f"{path}: {width}x{height} px is over the limit of {max_pixels} pixels; raise max_pixels")
        view = FrameView(dataset, index)
        stored = decode_frame(path, dataset, index)
        try:
            info["windows"] = view.windows()
            info["spacing_mm"] = view.spacing_mm()
            geometry = view.geometry((width, height), num_frames)
            if is_colour(dataset):
                pixels = show_colour(stored, dataset, path, window)
            else:
                pixels = show_grey(measured(stored, view), padding_of(stored, dataset), view, path, window)
        except (ImageError, ImportError):
            raise
        except InputError as error:
            raise ImageError(f"{path}: {error}") from None
        except Exception as error:  # values of the header must not reach the message
            raise ImageError(
                f"{path}: the header is damaged or contradicts the pixels ({type(error).__name__}); {COPY_AGAIN}"
            ) from None
    if geometry is not None:
        info["plane"] = geometry.plane
    return LoadedImage(np.ascontiguousarray(pixels), geometry, {"kind": "dicom", "num_frames": num_frames, **info})


def read_size(path: Path) -> tuple[int, int]:
    """Return (width, height) in px as the header states them; nothing is decoded.

    Raises:
        ImageError: not a readable DICOM file, or one that holds no image.
    """
    with silent_libraries():
        return picture_size(path, open_dicom(path, PLACE_TAGS))


def open_dicom(path: Path, tags: list[str] = TAGS) -> Any:
    """Return the header of an image, with its pixels undecoded where `tags` names them.

    Raises:
        ImageError: not a readable DICOM file, or one that holds no image.
    """
    pydicom = import_optional("pydicom", "medical", f"{path}: reading DICOM")
    uid = import_optional("pydicom.uid", "medical", f"{path}: reading DICOM")
    with_pixels = "PixelData" in tags
    try:
        dataset = _inflated(path, tags)
        if dataset is None:
            force = path.suffix.lower() in SUFFIXES
            dataset = pydicom.dcmread(path, specific_tags=tags, force=force, stop_before_pixels=not with_pixels)
        has_pixels = not with_pixels or any(key in dataset for key in PIXELS)
        complete = has_pixels and "Rows" in dataset and "Columns" in dataset
        if complete and "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            dataset.file_meta.TransferSyntaxUID = (
                uid.ImplicitVRLittleEndian if implicit
                else uid.ExplicitVRLittleEndian if little
                else uid.ExplicitVRBigEndian
            )  # fmt: skip
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"{path}: not a readable DICOM file: truncated or damaged ({type(error).__name__}); {COPY_AGAIN}"
        ) from None
    if not complete and not has_magic(path) and not any(key in dataset for key in ("Rows", "Modality", *PIXELS)):
        raise ImageError(f"{path}: not a DICOM file, whatever its name says: rename it, or leave it out")
    if not complete:
        raise ImageError(f"{path}: this DICOM file holds no image (a report, plan or index?): leave it out")
    return dataset


def _inflated(path: Path, tags: list[str]) -> Any:
    """Return the data set of a deflated file, which no more is inflated of than a picture can need; None for others."""
    from pydicom.filereader import read_dataset, read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    if not has_magic(path):
        return None
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return None
    deflated = path.read_bytes()[META_START + int(meta.FileMetaInformationGroupLength) :]
    inflater, pieces, num_bytes = zlib.decompressobj(-zlib.MAX_WBITS), [], 0
    for start in range(0, len(deflated), INFLATED_AT_A_TIME):
        pieces.append(inflater.decompress(deflated[start : start + INFLATED_AT_A_TIME]))
        num_bytes += len(pieces[-1])
        if num_bytes > MAX_INFLATED_BYTES:
            raise ImageError(
                f"{path}: its deflated data are over the limit of {MAX_INFLATED_BYTES >> 20} MiB: a bomb? If it is "
                "genuine, save it uncompressed first"
            )
    dataset = read_dataset(io.BytesIO(b"".join(pieces)), False, True, specific_tags=_numbers(tags))
    dataset.file_meta = meta
    dataset.set_original_encoding(False, True)
    return dataset


def _numbers(tags: list[str]) -> list[Any]:
    from pydicom.tag import Tag

    return [Tag(tag) for tag in tags]


def picture_size(path: Path, dataset: Any) -> tuple[int, int]:
    """Return (width, height) in px of the frames of a file."""
    try:
        width, height = int(dataset.Columns), int(dataset.Rows)
    except (TypeError, ValueError):
        width, height = 0, 0
    if min(width, height) < 1:
        raise ImageError(f"{path}: the header states no size of the picture; {COPY_AGAIN}")
    return width, height


def frame_count(dataset: Any) -> int:
    """Return the number of frames of a file."""
    try:
        return max(1, int(dataset.get("NumberOfFrames") or 1))
    except (TypeError, ValueError):
        return 1


def facts_of(dataset: Any) -> dict[str, Any]:
    """Return coded facts that name nobody."""
    facts = {}
    keywords = {"modality": ("Modality",), "body_part": ("BodyPartExamined",), "view": ("ViewPosition",)}
    for name, keys in {**keywords, "laterality": ("ImageLaterality", "Laterality")}.items():
        value = next((str(dataset.get(key)).strip() for key in keys if dataset.get(key)), "")
        if CODE_STRING.fullmatch(value):
            facts[name] = value
    return facts


def decode_frame(path: Path, dataset: Any, index: int) -> NDArray[Any]:
    """Return the stored values of a frame, as the header says where in their words they lie.

    Raises:
        ImageError: damaged, or compressed in a way that no installed decoder reads.
    """
    from pydicom.pixels import get_decoder, pixel_array
    from pydicom.uid import RLELossless

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    name = syntax.name if syntax.is_transfer_syntax else "an unknown transfer syntax"
    if not available:
        raise ImageError(f"{path}: compressed as {name}, which needs a further decoder: {PLUGINS}")
    try:
        in_words = not syntax.is_encapsulated or syntax == RLELossless  # other codes hold samples, not words
        if not (in_words and bits_lie_high(dataset)):
            return pixel_array(dataset, index=index)
        return lowered(pixel_array(dataset, index=index, correct_unused_bits=False), dataset)
    except Exception as error:
        hint = f"; if other programs open it, its {name} stream may need: {PLUGINS}" if syntax.is_compressed else ""
        raise ImageError(
            f"{path}: the pixels cannot be decoded: truncated or damaged ({type(error).__name__}); {COPY_AGAIN}{hint}"
        ) from None
