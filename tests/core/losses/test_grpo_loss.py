"""Policy-gradient losses: each variant against a ten-line reference and against Liger's own loss on padded rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medmo_core.losses import PolicyObjective, importance_weights, linear_grpo_loss, policy_loss
from medmo_core.losses.grpo import PolicyLoss
from medmo_core.losses.liger import liger_logprob_loss

LENGTHS = (5, 1, 3, 7)
ADVANTAGES = (1.3, -0.7, 0.4, -1.1)
SETTINGS = {"epsilon_low": 0.1, "epsilon_high": 0.3, "beta": 0.2}
LOSSES = ("grpo", "dapo", "dr_grpo", "gspo", "cispo")


def objective_of(loss: Any, **settings: Any) -> PolicyObjective:
    return PolicyObjective(loss=loss, **SETTINGS, **settings)


class Case:
    """Completions of mixed lengths whose ratios lie on both sides of both clips."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        draw = torch.Generator().manual_seed(3)
        num = sum(LENGTHS)
        self.hidden = torch.randn(num, 12, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
        self.weight = torch.randn(37, 12, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
        self.targets = torch.randint(0, 37, (num,), generator=draw)
        self.documents = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS)) * 2 + 1
        self.advantages = torch.tensor(ADVANTAGES, dtype=dtype).repeat_interleave(torch.tensor(LENGTHS))
        with torch.no_grad():
            self.now = self.logps(self.hidden, self.weight)
        self.old = self.now + 0.35 * torch.randn(num, generator=draw, dtype=torch.float64).to(dtype)
        self.ref = self.now + 0.5 * torch.randn(num, generator=draw, dtype=torch.float64).to(dtype)
        self.sampled = self.old + 0.4 * torch.randn(num, generator=draw, dtype=torch.float64).to(dtype)

    def logps(self, hidden: Tensor, weight: Tensor) -> Tensor:
        logits = F.linear(hidden, weight) / 0.7
        return logits.log_softmax(-1).gather(1, self.targets[:, None]).squeeze(1)

    def token_weights(self, loss: str) -> Tensor:
        lengths = torch.tensor(LENGTHS, dtype=self.now.dtype).repeat_interleave(torch.tensor(LENGTHS))
        divisor = {"dapo": torch.full_like(lengths, sum(LENGTHS)), "dr_grpo": torch.full_like(lengths, 9.0 * 4)}
        divisor["cispo"] = divisor["dapo"]
        return 1.0 / divisor.get(loss, 4 * lengths)

    def ours(self, loss: str, **changed: Any) -> PolicyLoss:
        given = {"old_logps": self.old, "ref_logps": self.ref, "sampled_logps": self.sampled,
                 "documents": self.documents, "temperature": 0.7}  # fmt: skip
        settings = {name: changed.pop(name) for name in ("importance", "importance_cap") if name in changed}
        objective, weights = objective_of(loss, **settings), self.token_weights(loss)
        return linear_grpo_loss(
            self.hidden, self.weight, self.targets, self.advantages, weights,
            objective=objective, **{**given, **changed},
        )  # fmt: skip

    def gradients(self, total: Tensor) -> list[Tensor]:
        return [total.detach(), *torch.autograd.grad(total, [self.hidden, self.weight])]


def reference(loss: str, case: Case) -> Tensor:
    """Completion by completion and token by token, with branches instead of minima."""
    logps, total, start = case.logps(case.hidden, case.weight), torch.zeros((), dtype=torch.float64), 0
    for length, advantage in zip(LENGTHS, ADVANTAGES, strict=True):
        new, old, ref = (values[start : start + length] for values in (logps, case.old, case.ref))
        start += length
        for t in range(length):
            ratio = (new - old).mean().exp() if loss == "gspo" else (new[t] - old[t]).exp()
            bound = 1.3 if advantage > 0 else 0.9
            outside = ratio > bound if advantage > 0 else ratio < bound
            term = -(bound if outside else ratio) * advantage
            if loss == "cispo":
                term = -min(float(ratio.detach()), 1.3) * advantage * new[t]
            term = term + 0.2 * ((ref[t] - new[t]).exp() - (ref[t] - new[t]) - 1)
            size = {"dapo": sum(LENGTHS), "cispo": sum(LENGTHS), "dr_grpo": 4 * 9}.get(loss, 4 * length)
            total = total + term / size
    return total


@pytest.mark.parametrize("loss", LOSSES)
def test_a_variant_equals_its_ten_lines(loss: str) -> None:
    case = Case()
    got = case.ours(loss)
    torch.testing.assert_close(case.gradients(got.total), case.gradients(reference(loss, case)), rtol=1e-10, atol=1e-12)
    assert got.clipped.any() and not got.clipped.all()
    torch.testing.assert_close(got.logps, case.now)
    assert not any(part.requires_grad for part in got[1:])
    others = [reference(other, case) for other in LOSSES if other != loss]
    assert not any(torch.isclose(got.total, other, rtol=1e-6) for other in others)  # the variants can be told apart


@pytest.mark.parametrize("loss", LOSSES)
def test_the_fused_function_gives_the_same(loss: str) -> None:
    """What CUDA runs, on the CPU in fp32: loss, parts, and both gradients."""
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    case, plain = Case(torch.float32), Case()

    def objective(logps: Tensor) -> PolicyLoss:
        return policy_loss(
            logps, advantages=case.advantages, token_weights=case.token_weights(loss), old_logps=case.old,
            ref_logps=case.ref, sampled_logps=case.sampled, documents=case.documents,
            objective=objective_of(loss, importance="token_truncate", importance_cap=1.2),
        )  # fmt: skip

    got = PolicyLoss(*liger_logprob_loss(case.hidden, case.weight, case.targets, objective, 0.7))
    expected = plain.ours(loss, importance="token_truncate", importance_cap=1.2)
    close = {"rtol": 3e-5, "atol": 3e-5, "check_dtype": False}
    torch.testing.assert_close(case.gradients(got.total), plain.gradients(expected.total), **close)
    for name in ("logps", "clipped", "kl", "importance"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), **close)


@pytest.mark.parametrize("loss", LOSSES)
def test_ligers_own_loss_on_padded_rows_gives_the_same(loss: str) -> None:
    """An implementation by other hands: one padded row a completion, its own averages."""
    liger = pytest.importorskip("liger_kernel.chunked_loss.grpo_loss", reason="liger-kernel is not installed")
    case = Case(torch.float32)
    longest = max(LENGTHS)
    mask = torch.arange(longest) < torch.tensor(LENGTHS)[:, None]

    def padded(values: Tensor) -> Tensor:
        return values.new_zeros(*mask.shape, *values.shape[1:]).masked_scatter(
            mask.view(*mask.shape, *[1] * (values.dim() - 1)), values
        )

    theirs = liger.LigerFusedLinearGRPOLoss(
        beta=0.2,
        compiled=False,
        chunk_size=len(LENGTHS),
        epsilon_low=0.1,
        epsilon_high=1.3 if loss == "cispo" else 0.3,  # its cispo takes the bound itself
        loss_type="grpo" if loss == "gspo" else loss,
        importance_sampling_level="sequence" if loss == "gspo" else "token",
        max_completion_length=9,
        temperature=0.7,
    )
    total, _ = theirs(
        padded(case.hidden), case.weight, padded(case.targets), mask.float(), torch.tensor(ADVANTAGES),
        ref_per_token_logps=padded(case.ref), old_per_token_logps=padded(case.old),
    )  # fmt: skip
    close = {"rtol": 3e-5, "atol": 3e-5}
    torch.testing.assert_close(case.gradients(case.ours(loss).total), case.gradients(total), **close)


@pytest.mark.parametrize("loss", LOSSES)
def test_without_old_probabilities_every_ratio_is_one(loss: str) -> None:
    case = Case()
    alone, given = case.ours(loss, old_logps=None), case.ours(loss, old_logps=case.now)
    torch.testing.assert_close(case.gradients(alone.total), case.gradients(given.total), rtol=1e-12, atol=1e-14)
    assert not alone.clipped.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_token_without_weight_takes_part_in_nothing(loss: str) -> None:
    """Not in the mean of its completion's ratios either, and what the sampler said of it may be NaN."""
    case = Case()
    weights = case.token_weights(loss)
    weights[[2, 5, 15]] = 0.0  # one of five, the only one of a completion, the last
    keep = weights > 0
    sampled = case.sampled.masked_fill(~keep, float("nan"))
    objective = objective_of(loss, importance="sequence_truncate")

    def run(rows: Tensor) -> Tensor:
        columns = [values[rows] for values in (case.targets, case.advantages, weights, case.old, case.ref, sampled)]
        return linear_grpo_loss(
            case.hidden[rows], case.weight, *columns, case.documents[rows], objective=objective, temperature=0.7
        ).total

    everything = torch.ones_like(keep)
    torch.testing.assert_close(case.gradients(run(everything)), case.gradients(run(keep)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0"),
        ({"old_logps": torch.zeros(2)}, r"old_logps \(2,\) and targets \(16,\) differ"),
        ({"documents": None}, "needs documents"),
        ({"importance": "token_mask", "sampled_logps": None}, "needs sampled_logps"),
    ],
)
def test_what_cannot_be_computed_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case().ours("gspo", **change)


def test_no_row_has_no_loss() -> None:
    nothing: Callable[..., Tensor] = lambda *shape: torch.zeros(*shape, dtype=torch.float64)  # noqa: E731
    hidden = nothing(0, 12).requires_grad_()
    rows = nothing(0)
    for loss in LOSSES:
        got = linear_grpo_loss(
            hidden, nothing(37, 12), rows.long(), rows, rows, rows, rows, rows, rows.long(),
            objective=objective_of(loss, importance="sequence_mask"),
        )  # fmt: skip
        got.total.backward()
        assert got.total == 0 and len(got.logps) == 0


def test_importance_weights_of_runs_of_tokens() -> None:
    """A single document, and documents whose numbers leave gaps."""
    logps, sampled = torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3)
    counted = torch.ones(3, dtype=torch.bool)
    whole = importance_weights(logps, sampled, counted, torch.tensor([4, 4, 4]), "sequence_truncate", 9.0)
    torch.testing.assert_close(whole, torch.full((3,), 0.6).exp())
    parts = importance_weights(logps, sampled, counted, torch.tensor([1, 5, 5]), "sequence_truncate", 9.0)
    torch.testing.assert_close(parts, torch.tensor([0.1, 0.5, 0.5]).exp())
