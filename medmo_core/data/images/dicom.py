"""DICOM images: decode, rescale, window, invert, in that order; only the tags a picture needs are ever read.

The tags that name a person are not on the list, so they cannot reach a message, a log or a record. This does not
replace a validated de-identifier: text burned into the pixels stays.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...optional import import_optional
from .geometry import Geometry
from .intensity import HOUNSFIELD_WINDOWS, apply_range, apply_window, percentile_range, read_window, to_grey
from .loaded import ImageError, LoadedImage, silent_libraries

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
CODE_STRING = re.compile(r"[A-Z0-9 _]{1,16}")  # DICOM's own rule for coded values; anything else is not passed on
SUFFIXES = (".dcm", ".dicom", ".ima")
PLUGINS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"


def is_dicom(path: Path) -> bool:
    """Say whether a file is DICOM: by its magic bytes, or by its suffix where an old file has none."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in SUFFIXES


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
        dataset = _open(path)
        info, num_frames = _facts(dataset), _frame_count(dataset)
        index = frame or 0
        if not 0 <= index < num_frames:
            raise ImageError(f"{path}: frame is {frame}, but there are {num_frames} frames (0 to {num_frames - 1})")
        width, height = int(dataset.Columns), int(dataset.Rows)
        if width * height > max_pixels or width * height < 1:
            raise ImageError(f"{path}: {width}x{height} px is over the limit of {max_pixels} pixels; raise max_pixels")
        view = _FrameView(dataset, index)
        stored = _decode(path, dataset, index)
        try:
            info["windows"] = view.windows()
            info["spacing_mm"] = view.spacing_mm()
            geometry = view.geometry((width, height), num_frames)
            pixels = _colour(stored, dataset) if _is_colour(dataset) else _grey(stored, view, path, window)
        except (ImageError, ImportError):
            raise
        except Exception as error:  # values of the header must not reach the message
            raise ImageError(
                f"{path}: the header is damaged or contradicts the pixels ({type(error).__name__})"
            ) from None
    if geometry is not None:
        info["plane"] = geometry.plane
    return LoadedImage(np.ascontiguousarray(pixels), geometry, {"kind": "dicom", "num_frames": num_frames, **info})


def _open(path: Path) -> Any:
    pydicom = import_optional("pydicom", "medical", f"{path}: reading DICOM")
    uid = import_optional("pydicom.uid", "medical", f"{path}: reading DICOM")
    try:
        dataset = pydicom.dcmread(path, specific_tags=TAGS, force=path.suffix.lower() in SUFFIXES)
        has_pixels = any(key in dataset for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
        complete = has_pixels and "Rows" in dataset and "Columns" in dataset
        if complete and "TransferSyntaxUID" not in dataset.file_meta:
            implicit, little = dataset.original_encoding
            dataset.file_meta.TransferSyntaxUID = (
                uid.ImplicitVRLittleEndian if implicit
                else uid.ExplicitVRLittleEndian if little
                else uid.ExplicitVRBigEndian
            )  # fmt: skip
    except Exception as error:
        raise ImageError(f"{path}: not a readable DICOM file: truncated or damaged ({type(error).__name__})") from None
    if not complete:
        raise ImageError(f"{path}: this DICOM file holds no image (a report, plan or index?)")
    return dataset


def _facts(dataset: Any) -> dict[str, Any]:
    """Coded facts that name nobody."""
    facts = {}
    keywords = {"modality": ("Modality",), "body_part": ("BodyPartExamined",), "view": ("ViewPosition",)}
    for name, keys in {**keywords, "laterality": ("ImageLaterality", "Laterality")}.items():
        value = next((str(dataset.get(key)).strip() for key in keys if dataset.get(key)), "")
        if CODE_STRING.fullmatch(value):
            facts[name] = value
    return facts


def _frame_count(dataset: Any) -> int:
    try:
        return max(1, int(dataset.get("NumberOfFrames") or 1))
    except (TypeError, ValueError):
        return 1


def _decode(path: Path, dataset: Any, index: int) -> NDArray[Any]:
    from pydicom.pixels import get_decoder, pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    name = syntax.name if syntax.is_transfer_syntax else "an unknown transfer syntax"
    if not available:
        raise ImageError(f"{path}: compressed as {name}, which needs a further decoder: {PLUGINS}")
    try:
        return pixel_array(dataset, index=index)
    except Exception as error:
        hint = f"; if other programs open it, its {name} stream may need: {PLUGINS}" if syntax.is_compressed else ""
        raise ImageError(
            f"{path}: the pixels cannot be decoded: truncated or damaged ({type(error).__name__}){hint}"
        ) from None


class _FrameView:
    """Values that hold for one frame: its own functional groups, then the shared ones, then the top of the file."""

    def __init__(self, dataset: Any, index: int) -> None:
        self.dataset = dataset
        per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
        shared = dataset.get("SharedFunctionalGroupsSequence") or []
        self.groups = [*([per_frame[index]] if index < len(per_frame) else []), *shared[:1]]
        self.index = index

    def get(self, keyword: str, sequence: str) -> Any:
        for group in self.groups:
            items = group.get(sequence)
            if items and items[0].get(keyword) is not None:
                return items[0].get(keyword)
        return self.dataset.get(keyword)

    def windows(self) -> list[tuple[float, float]]:
        centers = _floats(self.get("WindowCenter", "FrameVOILUTSequence"))
        widths = _floats(self.get("WindowWidth", "FrameVOILUTSequence"))
        return [(c, w) for c, w in zip(centers, widths, strict=False) if w > 0]

    def spacing_mm(self) -> tuple[float, float] | None:
        """(x, y): PixelSpacing lists the rows first."""
        spacing = _floats(self.get("PixelSpacing", "PixelMeasuresSequence"))
        for keyword in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"):
            spacing = spacing or _floats(self.dataset.get(keyword))
        return (spacing[1], spacing[0]) if len(spacing) == 2 and min(spacing) > 0 else None

    def geometry(self, size: tuple[int, int], num_frames: int) -> Geometry | None:
        position = _floats(self.get("ImagePositionPatient", "PlanePositionSequence"))
        orientation = _floats(self.get("ImageOrientationPatient", "PlaneOrientationSequence"))
        spacing = _floats(self.get("PixelSpacing", "PixelMeasuresSequence"))
        if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
            return None
        if num_frames > 1 and self.index > 0 and not self.groups:
            return None  # one position for all frames says nothing about the later ones
        try:
            return Geometry.from_dicom(position, orientation, spacing, size)
        except ValueError:  # directions of zero length occur in secondary captures
            return None

    def rescale(self, stored: NDArray[Any]) -> NDArray[Any]:
        lut = self.dataset.get("ModalityLUTSequence")
        if lut:
            return _look_up(stored, lut[0], self.dataset)[0]
        slope = _floats(self.get("RescaleSlope", "PixelValueTransformationSequence"))
        intercept = _floats(self.get("RescaleIntercept", "PixelValueTransformationSequence"))
        return stored.astype(np.float64) * (slope or [1.0])[0] + (intercept or [0.0])[0]

    def function(self) -> str:
        return str(self.get("VOILUTFunction", "FrameVOILUTSequence") or "LINEAR").strip() or "LINEAR"


def _floats(value: Any) -> list[float]:
    if value is None or value == "":
        return []
    try:
        values = [float(v) for v in (value if hasattr(value, "__iter__") and not isinstance(value, str) else [value])]
    except (TypeError, ValueError):
        return []
    return values if all(np.isfinite(values)) else []


def _look_up(values: NDArray[Any], item: Any, dataset: Any) -> tuple[NDArray[np.float64], int]:
    """Send values through a lookup table; values beyond its ends take its end entries.

    Returns:
        The looked-up values and the number of bits of an entry.
    """
    count, first, bits = (int(v) for v in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        word = np.uint8 if len(data) == (count or 65536) else np.dtype("<u2" if dataset.original_encoding[1] else ">u2")
        data = np.frombuffer(data, word)
    table = np.atleast_1d(np.asarray(data, dtype=np.float64))[: count or 65536]
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return table[index], bits


def _is_colour(dataset: Any) -> bool:
    return int(dataset.get("SamplesPerPixel", 1)) > 1 or dataset.get("PhotometricInterpretation") == "PALETTE COLOR"


def _colour(stored: NDArray[Any], dataset: Any) -> NDArray[np.uint8]:
    """RGB of colour frames; the decoder has already left YBR."""
    bits = int(dataset.BitsStored)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        stored = apply_color_lut(stored, dataset)[..., :3]
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
    return (stored >> max(0, bits - 8)).astype(np.uint8)


def _grey(stored: NDArray[Any], view: _FrameView, path: Path, window: object) -> NDArray[np.uint8]:
    values = view.rescale(stored)
    padding = _padding(stored, view.dataset)
    windows = read_window(window)
    if windows is None:
        unit_channels = [_default_unit(values, stored, padding, view)]
    else:
        unit_channels = [_windowed(values, one, view, path) for one in windows]
    inverted = view.dataset.get("PhotometricInterpretation") == "MONOCHROME1"
    channels = [to_grey(1.0 - unit if inverted else unit) for unit in unit_channels]
    if padding is not None:
        for channel in channels:
            channel[padding] = 0
    return np.stack(channels * 3 if len(channels) == 1 else channels, axis=-1)


def _padding(stored: NDArray[Any], dataset: Any) -> NDArray[np.bool_] | None:
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    limit = limit if isinstance(limit, int) else value
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def _default_unit(
    values: NDArray[Any], stored: NDArray[Any], padding: NDArray[np.bool_] | None, view: _FrameView
) -> NDArray[np.float64]:
    """Values as 0..1 when nobody asked for a window."""
    dataset = view.dataset
    lut = dataset.get("VOILUTSequence")
    if lut:
        looked_up, bits = _look_up(values, lut[0], dataset)
        return apply_range(looked_up, 0.0, 2.0**bits - 1.0)
    windows = view.windows()
    if windows:
        try:
            return apply_window(values, windows[0], view.function())
        except ValueError:  # a width or a function that the standard does not allow: as if there were none
            pass
    if dataset.get("Modality") == "CT":
        return apply_window(values, HOUNSFIELD_WINDOWS["soft_tissue"])
    bits = int(dataset.get("BitsStored", 16))
    if bits <= 8 and np.issubdtype(stored.dtype, np.unsignedinteger):
        return apply_range(stored, 0.0, 2.0**bits - 1.0)
    return apply_range(values, *percentile_range(values, padding))


def _windowed(values: NDArray[Any], window: object, view: _FrameView, path: Path) -> NDArray[np.float64]:
    if isinstance(window, str):
        modality = view.dataset.get("Modality")
        if modality != "CT":
            raise ImageError(
                f"{path}: window {window!r} is in Hounsfield units, but the modality is "
                f"{modality if CODE_STRING.fullmatch(str(modality)) else 'unknown'}; give (center, width)"
            )
        return apply_window(values, HOUNSFIELD_WINDOWS[window])
    if isinstance(window, int):
        windows = view.windows()
        if window >= len(windows):
            raise ImageError(f"{path}: window index is {window}, but the file has {len(windows)} windows")
        return apply_window(values, windows[window], view.function())
    assert isinstance(window, tuple)
    return apply_window(values, window)
