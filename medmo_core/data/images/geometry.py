"""Position of a displayed picture in the patient: pixel edges to millimetres and back.

Patient axes are DICOM's: x to the patient's left, y to the back, z to the head (LPS). Pixel coordinates are edges, as
in `Boxes`: the centre of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError

Vector = tuple[float, float, float]
DIRECTIONS = (("R", "L"), ("A", "P"), ("F", "H"))  # towards smaller and larger x, y, z


@dataclass(frozen=True)
class Geometry:
    """Affine map from a displayed picture to the patient.

    Units: millimetres, LPS; `size` in pixels.

    Attributes:
        origin_mm: the outer corner of the first pixel, at pixel coordinates (0, 0).
        x_mm: what one pixel to the right adds.
        y_mm: what one pixel down adds.
        size: (width, height) of the picture.

    Raises:
        ValueError: the two directions do not span a plane, or a number is not finite.
    """

    origin_mm: Vector
    x_mm: Vector
    y_mm: Vector
    size: tuple[int, int]

    def __post_init__(self) -> None:
        numbers = (*self.origin_mm, *self.x_mm, *self.y_mm)
        if len(numbers) != 9 or not all(math.isfinite(v) for v in numbers):
            raise InputError(f"geometry needs three finite vectors of three numbers, got {numbers}")
        if math.hypot(*self._normal()) <= 1e-9 * math.hypot(*self.x_mm) * math.hypot(*self.y_mm):
            raise InputError(
                f"geometry: directions {self.x_mm} and {self.y_mm} are parallel or empty, they span no plane"
            )

    def _normal(self) -> Vector:
        (a, b, c), (d, e, f) = self.x_mm, self.y_mm
        return b * f - c * e, c * d - a * f, a * e - b * d

    @classmethod
    def from_first_center(
        cls, center_mm: Sequence[float], x_mm: Sequence[float], y_mm: Sequence[float], size: tuple[int, int]
    ) -> Geometry:
        """Build from the centre of the first pixel, which is what DICOM and NIfTI record."""
        c, x, y = ([float(v) for v in vector] for vector in (center_mm, x_mm, y_mm))
        corner = tuple(c[i] - 0.5 * (x[i] + y[i]) for i in range(3))
        return cls(_vector(corner), _vector(x), _vector(y), size)

    @classmethod
    def from_dicom(
        cls,
        position_mm: Sequence[float],
        orientation: Sequence[float],
        row_column_spacing_mm: Sequence[float],
        size: tuple[int, int],
    ) -> Geometry:
        """Build from ImagePositionPatient, ImageOrientationPatient and PixelSpacing (rows first, as DICOM has it)."""
        row_spacing, column_spacing = (float(v) for v in row_column_spacing_mm)
        x = [float(v) * column_spacing for v in orientation[:3]]
        y = [float(v) * row_spacing for v in orientation[3:]]
        return cls.from_first_center(position_mm, x, y, size)

    def to_patient(self, points_px: Tensor) -> Tensor:
        """Return where points lie in the patient.

        Shapes: (..., 2) pixel edges -> (..., 3) millimetres, float64.
        """
        points = torch.as_tensor(points_px, dtype=torch.float64)
        return self._tensor(self.origin_mm) + points @ self._basis()

    def to_pixel(self, points_mm: Tensor) -> Tensor:
        """Return the pixel coordinates under points, dropped at right angles onto the picture's plane.

        Shapes: (..., 3) millimetres -> (..., 2) pixel edges, float64.
        """
        offset = torch.as_tensor(points_mm, dtype=torch.float64) - self._tensor(self.origin_mm)
        return offset @ torch.linalg.pinv(self._basis())

    def distance_mm(self, points_mm: Tensor) -> Tensor:
        """Return the signed distance (...,) of points (..., 3) from the picture's plane."""
        normal = self._tensor(self._normal())
        offset = torch.as_tensor(points_mm, dtype=torch.float64) - self._tensor(self.origin_mm)
        return offset @ (normal / normal.norm())

    def crop(self, x0: int, y0: int, x1: int, y1: int) -> Geometry:
        """Return the geometry of a window [x0, y0, x1, y1] of the picture, which may reach beyond it."""
        moved = self.to_patient(torch.tensor([x0, y0], dtype=torch.float64)).tolist()
        return Geometry(_vector(moved), self.x_mm, self.y_mm, (x1 - x0, y1 - y0))

    def resize(self, size: tuple[int, int]) -> Geometry:
        """Return the geometry of the picture resized to `size` (width, height)."""
        x_scale, y_scale = self.size[0] / size[0], self.size[1] / size[1]
        x_mm = _vector([v * x_scale for v in self.x_mm])
        y_mm = _vector([v * y_scale for v in self.y_mm])
        return Geometry(self.origin_mm, x_mm, y_mm, size)

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """Size of one pixel (x, y) in millimetres."""
        return math.hypot(*self.x_mm), math.hypot(*self.y_mm)

    @property
    def edges(self) -> dict[str, str]:
        """What the picture's left, right, top and bottom look towards, nearest of R, L, A, P, H(ead), F(oot)."""
        left, right = _nearest(self.x_mm)
        top, bottom = _nearest(self.y_mm)
        return {"left": left, "right": right, "top": top, "bottom": bottom}

    @property
    def plane(self) -> str:
        """The nearest of axial, coronal and sagittal."""
        return ("sagittal", "coronal", "axial")[_longest(self._normal())]

    @staticmethod
    def _tensor(vector: Vector) -> Tensor:
        return torch.tensor(vector, dtype=torch.float64)

    def _basis(self) -> Tensor:
        return torch.tensor([self.x_mm, self.y_mm], dtype=torch.float64)


def _vector(values: Sequence[float]) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _longest(vector: Vector) -> int:
    return max(range(3), key=lambda axis: abs(vector[axis]))


def _nearest(vector: Vector) -> tuple[str, str]:
    axis = _longest(vector)
    low, high = DIRECTIONS[axis]
    return (low, high) if vector[axis] > 0 else (high, low)
