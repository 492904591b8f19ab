"""AdamW without fp32 copies: bfloat16 weights and moments, rounded at random so that small updates survive on average.

A bfloat16 number has 8 significant bits. Rounded to the nearest, an update below 1/512 of a weight is lost every time;
rounded up with the probability of the bits that fall away, its expectation is exact. The random bits are a hash of the
run's seed, the step, the parameter's name and the place in the whole parameter: they are the same whatever the number
of processes, on CPU and GPU, and after a resume.
"""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..distributed.shards import first_index
from .adam import Hyper, TrainedParameter

CHUNK = 2**24
"""Numbers updated at a time: 64 MiB for each fp32 intermediate, whatever the size of the parameter."""


def random_bits(key: str, first: int, count: int, device: torch.device) -> Tensor:
    """Return 16 random bits for each of the places first, first + 1, ...: a hash of key and place.

    Returns:
        (count,) int32, 0 to 65,535.

    Reference: the mixing constants are lowbias32 of C. Wellons, https://nullprogram.com/blog/2018/07/31/.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    start = _int32(int.from_bytes(digest[:4], "little") + first)
    second = _int32(int.from_bytes(digest[4:], "little"))
    x = torch.arange(count, dtype=torch.int32, device=device).add_(start)
    x.bitwise_xor_(_shifted(x, 16)).mul_(0x7FEB352D)
    # The second half of the key goes in between: with one addition alone all keys would give windows of one sequence.
    x.bitwise_xor_(_shifted(x, 15)).add_(second).mul_(_int32(0x846CA68B))
    return _shifted(x, 16)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift right without carrying the sign along."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _int32(number: int) -> int:
    """Return the 32-bit signed number with the same low 32 bits."""
    return (number + 2**31) % 2**32 - 2**31


def round_stochastically(values: Tensor, key: str, first: int) -> Tensor:
    """Round fp32 numbers to one of their two bfloat16 neighbours, the nearer the likelier; unbiased.

    Args:
        values: (n,) fp32, finite.
        key: names what is rounded and when.
        first: place of values[0] in the whole parameter.

    Returns:
        (n,) bfloat16.
    """
    bits = values.view(torch.int32) + random_bits(key, first, values.numel(), values.device)
    return bits.bitwise_and_(-65536).view(torch.float32).to(torch.bfloat16)


class Moment(Protocol):
    """A way of keeping one moment of a parameter in `part.state`."""

    def zeros(self, part: TrainedParameter, kind: str) -> dict[str, Tensor]:
        """Return its state tensors, zero."""
        ...

    def read(self, part: TrainedParameter, kind: str, span: slice) -> Tensor:
        """Return a run of it in fp32, in memory that may be written to."""
        ...

    def write(self, part: TrainedParameter, kind: str, span: slice, values: Tensor, key: str, first: int) -> None:
        """Keep new fp32 values of that run."""
        ...


class WideMoment:
    """fp32."""

    def zeros(self, part: TrainedParameter, kind: str) -> dict[str, Tensor]:
        """Return its state tensors, zero."""
        return {kind: torch.zeros_like(part.local, dtype=torch.float32)}

    def read(self, part: TrainedParameter, kind: str, span: slice) -> Tensor:
        """Return a run of it."""
        return part.state[kind].view(-1)[span].clone()

    def write(self, part: TrainedParameter, kind: str, span: slice, values: Tensor, key: str, first: int) -> None:
        """Keep new values of that run."""
        part.state[kind].view(-1)[span].copy_(values)


class RoundedMoment:
    """bfloat16, rounded at random: to the nearest, a second moment that shrinks by 1/1000 a step would never move."""

    def zeros(self, part: TrainedParameter, kind: str) -> dict[str, Tensor]:
        """Return its state tensors, zero."""
        return {kind: torch.zeros_like(part.local, dtype=torch.bfloat16)}

    def read(self, part: TrainedParameter, kind: str, span: slice) -> Tensor:
        """Return a run of it."""
        return part.state[kind].view(-1)[span].float()

    def write(self, part: TrainedParameter, kind: str, span: slice, values: Tensor, key: str, first: int) -> None:
        """Keep new values of that run, rounded."""
        part.state[kind].view(-1)[span].copy_(round_stochastically(values, key, first))


class RoundingAdamW:
    """AdamW on bfloat16 weights without a master copy."""

    def moment(self, part: TrainedParameter) -> Moment:
        """Return how the moments of a parameter are kept."""
        return RoundedMoment()

    def allocate(self, part: TrainedParameter) -> None:
        """Fill `part.state` with zero moments."""
        moment = self.moment(part)
        part.state |= {**moment.zeros(part, "exp_avg"), **moment.zeros(part, "exp_avg_sq")}

    def update(self, parts: Sequence[TrainedParameter], rate: float, hyper: Hyper) -> None:
        """Take one step on all parameters and free their gradients."""
        for part in parts:
            weight, gradient = part.local.view(-1), part.take_gradient().reshape(-1)
            first = first_index(part.parameter)
            for start in range(0, weight.numel(), CHUNK):
                self._update_run(part, weight, gradient, slice(start, start + CHUNK), first + start, rate, hyper)

    def _update_run(
        self,
        part: TrainedParameter,
        weight: Tensor,
        gradient: Tensor,
        span: slice,
        first: int,
        rate: float,
        hyper: Hyper,
    ) -> None:
        """Update some of a parameter's numbers, in fp32, in the order of operations of torchao's AdamW."""
        moment, lr = self.moment(part), rate * part.lr_scale
        key = f"{hyper.seed}:{hyper.count}:{part.name}:"
        (beta1, beta2), count = hyper.betas, hyper.count
        wide = weight[span].float()
        slope = gradient[span].float().mul_(hyper.clip)
        wide.sub_(wide * (lr * part.weight_decay))
        exp_avg = moment.read(part, "exp_avg", span).lerp_(slope, 1 - beta1)
        moment.write(part, "exp_avg", span, exp_avg, key + "exp_avg", first)
        exp_avg_sq = moment.read(part, "exp_avg_sq", span).lerp_(slope.square_(), 1 - beta2)
        moment.write(part, "exp_avg_sq", span, exp_avg_sq, key + "exp_avg_sq", first)
        spread = exp_avg_sq.sqrt_().div_((1 - beta2**count) ** 0.5).add_(hyper.eps)
        wide.sub_(exp_avg.div_(1 - beta1**count).mul_(lr).div_(spread))
        weight[span] = round_stochastically(wide, key + "weight", first)
