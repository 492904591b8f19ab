"""A peer: why it may be absent, what it is given, and how often it is compiled."""

import pytest
import torch

from benchmarks.peers import EXACT, PEERS, Peer
from benchmarks.peers.peer import compiled

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("peer", "device", "refusal"),
    [
        (Peer(torch.add), CPU, ""),
        (Peer(torch.add, needs=("torch", "no_such_package")), CPU, "no_such_package not installed"),
        (Peer(torch.add, cuda=True), CPU, "runs on a GPU only"),
        (Peer(torch.add, cuda=True), CUDA, ""),
        (Peer(torch.add, needs=("no_such_package",), cuda=True), CPU, "no_such_package not installed"),
    ],
)
def test_an_absent_peer_says_why(peer: Peer, device: torch.device, refusal: str) -> None:
    assert peer.refusal(device) == refusal


def test_a_peer_is_given_what_its_user_would_have() -> None:
    peer = Peer(lambda x: x + 1, prepare=lambda arguments: {"x": arguments["query"] * 2})
    assert peer(query=3) == 7


def test_a_function_is_compiled_once_and_only_when_called(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **settings: asked.append(settings) or function)
    double = compiled(lambda x: 2 * x)
    assert not asked
    assert [double(1), double(2)] == [2, 4] and asked == [{"dynamic": False}]


def test_the_exact_ones_are_peers_too() -> None:
    assert all(peer in PEERS[op].values() for op, peer in EXACT.items())
