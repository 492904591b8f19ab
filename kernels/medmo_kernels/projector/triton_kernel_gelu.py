"""GELU by erf in few instructions: the tail of the normal distribution as 2 to the power of a polynomial.

With Q(a) the share that lies beyond a on one side, gelu(x) = x (1 + erf(x / sqrt(2))) / 2 = max(x, 0) - |x| Q(|x|). The
logarithm of Q is smooth, so that a polynomial of degree 8 and one exponential give it everywhere; erf needs two
polynomials and a choice between them. Compiled for sm_90, the first product's whole epilogue has 18 instructions an
element; with erf it had 39.

The coefficients are the best ones, by linear programming, for the largest error of max(a, 1) Q(a) on [0, 5.5], with
Q(0) = 1/2 exact: 1.5e-8, and 1.8e-8 once they are rounded to fp32. The polynomial falls without end. Numerics: in fp32
the absolute error of GELU is at most 6e-8 beside the rounding of the result, where the form with erf, whose 1 cancels
for negative x, has up to 1.8e-7.
"""
# pyright: reportArgumentType=false, reportCallIssue=false
# Triton's compile-time constants are unknown to type checkers.

import triton
import triton.language as tl


@triton.jit
def beyond(distance):
    """Return the share of a normal distribution that lies further from its middle than `distance`, on one side."""
    power = -2.3349491558e-06 * distance + 3.3737822378e-05
    power = power * distance - 1.6129386495e-04
    power = power * distance - 1.9170342421e-04
    power = power * distance + 7.1268648650e-03
    power = power * distance - 5.2533611655e-02
    power = power * distance - 4.5919829607e-01
    power = power * distance - 1.1511059999
    return tl.exp2(power * distance - 1.0)


@triton.jit
def gelu(x):
    """Return x times the share of a normal distribution that lies below x; NaN for NaN, 0 for minus infinity."""
    distance = tl.minimum(tl.abs(x), 16.0)  # the product of infinity and what lies beyond it is 0
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - distance * beyond(distance)
