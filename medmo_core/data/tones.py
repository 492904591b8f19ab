"""Random tone curves: grey levels as another scanner, window, sequence or contrast agent would have shown them.

A small model that sees few scans learns the looks of each. Under curves that change from picture to picture only shapes
and places are left to learn from. Labels and boxes stay as they are. A curve is drawn as

- a rising line through `KNOTS` random heights,
- a power (gamma) whose logarithm is normal, sigma `GAMMA_SIGMA`,
- up to `MAX_BUMPS` Gaussian bumps of either sign, which move one range of tissues against the others,
- a random range of grey levels into which all is stretched,

and the picture gets normal noise of up to `MAX_NOISE` grey levels. All channels of a colour picture share one curve.
Where the outlines of structures are known, two things come before the curve, since that moves a kidney and a liver of
the same grey together. As often as `AGENT_RATIO` says, contrast agent of a random dose and phase brightens what takes
it up. And a random share of the structures is made brighter or darker, each for itself, as another sequence would
(label maps in place of scans: Billot et al., SynthSeg, 2023, arXiv 2107.09559).
"""

import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KNOTS = 6
GAMMA_SIGMA = 0.3
MAX_BUMPS = 3
BUMP_WIDTH = 0.12
"""Standard deviation of a bump, of the range of grey levels."""
BUMP_HEIGHT = 0.15
"""Standard deviation of its height."""
MAX_NOISE = 12.0
"""Largest standard deviation of the noise, in grey levels of 255."""
AGENT_RATIO = 0.6
"""Share of the curves with contrast agent."""
DOSES = (0.4, 1.4)
"""Least and largest dose, over the usual one."""
DOSE_SPREAD = 0.2
"""Largest deviation of a structure's uptake from what is usual, as a share."""
SHIFT_SIGMA = 45.0
"""Standard deviation of a structure's shift, in grey levels."""
DARKEST, BRIGHTEST = 0.25, 0.7
"""Upper limit of the range's lower end, lower limit of its upper end."""

Pixels = NDArray[np.uint8]
Uptake = tuple[tuple[int, float, float], ...]
"""Value in the outlines, gain in the arterial and in the venous phase: see `records.sample.Outlines`."""


@dataclass(frozen=True, eq=False)
class Tone:
    """A tone curve and the noise that goes with it.

    Attributes:
        levels: (256,) uint8, the new grey level of every old one.
        noise: standard deviation of the noise, in grey levels.
        seed: seed of the noise.
        shifts: (256,) float32, what a structure gains before the curve, in grey levels, by its value in the outlines.
        phase: phase of the contrast agent, from arterial (0) to venous (1).
        doses: (256,) float32, dose that reaches a structure over the usual one, by its value in the outlines.
    """

    levels: Pixels
    noise: float
    seed: int
    shifts: NDArray[np.float32]
    phase: float
    doses: NDArray[np.float32]

    def apply(self, pixels: Pixels, outlines: Pixels | None = None, uptake: Uptake = ()) -> Pixels:
        """Return a picture under the curve, with noise.

        Args:
            pixels: (H, W, 3), the picture.
            outlines: (H, W), a value for each structure and 0 for none; None: not known.
            uptake: gains in grey levels of the structures that contrast agent brightens.

        Returns:
            (H, W, 3), the picture under the curve.
        """
        if outlines is not None:
            gains = self.shifts.copy()
            for value, arterial, venous in uptake:
                gains[value] += self.doses[value] * (arterial + self.phase * (venous - arterial))
            pixels = (pixels + _soft(gains[outlines])[..., None]).round().clip(0, 255).astype(np.uint8)
        wide = self.levels[pixels].astype(np.float32)
        drawn = np.random.default_rng(self.seed).standard_normal((*pixels.shape[:2], 1), dtype=np.float32)
        return (wide + self.noise * drawn).round().clip(0, 255).astype(np.uint8)


def random_tone(seed: int) -> Tone:
    """Draw a tone curve; the same seed gives the same one."""
    rng = random.Random(f"tone/{seed}")
    grey = np.linspace(0.0, 1.0, 256)
    steps = np.cumsum([0.0, *(rng.uniform(0.2, 1.8) for _ in range(KNOTS - 1))])
    curve = np.interp(grey, np.linspace(0.0, 1.0, KNOTS), steps / steps[-1])
    curve = curve ** math.exp(rng.gauss(0.0, GAMMA_SIGMA))
    for _ in range(rng.randint(0, MAX_BUMPS)):
        centre, height = rng.random(), rng.gauss(0.0, BUMP_HEIGHT)
        curve = curve + height * np.exp(-((grey - centre) ** 2) / (2 * BUMP_WIDTH**2))
    low, high = rng.uniform(0.0, DARKEST), rng.uniform(BRIGHTEST, 1.0)
    levels = 255 * (low + (high - low) * (curve - curve.min()) / (curve.max() - curve.min()))
    noise, noise_seed = rng.uniform(0.0, MAX_NOISE), rng.getrandbits(32)
    return Tone(levels.round().astype(np.uint8), noise, noise_seed, *_random_gains(noise_seed))


def _random_gains(seed: int) -> tuple[NDArray[np.float32], float, NDArray[np.float32]]:
    """Draw the shift of each value of the outlines, the phase, and each value's dose; value 0 is no structure."""
    rng = np.random.default_rng((seed, 1))
    shifts = np.where(rng.random(256) < rng.random(), rng.normal(0.0, SHIFT_SIGMA, 256), 0.0)
    shifts[0] = 0.0
    phase, dose = rng.random(), rng.uniform(*DOSES) if rng.random() < AGENT_RATIO else 0.0
    doses = dose * rng.uniform(1 - DOSE_SPREAD, 1 + DOSE_SPREAD, 256)
    return shifts.astype(np.float32), phase, doses.astype(np.float32)


def _soft(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a field (H, W) with soft edges: sharp ones would give away the outlines. Binomial over 3 x 3 px."""
    for axis in (0, 1):
        padded = np.pad(field, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        before, after = (padded.take(range(o, o + field.shape[axis]), axis) for o in (0, 2))
        field = (0.25 * (before + 2 * field + after)).astype(np.float32)
    return field
