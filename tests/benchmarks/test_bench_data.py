"""The benchmark of the data flow measures what it says, and its status tells when a requirement is missed."""

from pathlib import Path

import pytest

from benchmarks import bench_data as b
from medmo_core.data.open_source import open_source


def test_both_ways_make_the_same_patches() -> None:
    data = b.textured_jpeg(320, 256)
    patches = b.to_patches(data, b.MAX_PIXELS)
    theirs = b.their_way(b.MAX_PIXELS)(data)["pixel_values"].reshape(len(patches), 3, 2, 256)[:, :, 0]
    assert patches.shape == (320 * 256 // 256, 768)
    assert abs((theirs.reshape(len(patches), -1) * 0.5 + 0.5) * 255 - patches).max() < 1e-3


def test_the_shard_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = b.textured_jpeg(64, 48)
    monkeypatch.setattr(b, "textured_jpeg", lambda *arguments: jpeg)
    b.write_shard(tmp_path / "shard.tar", 2)
    assert [s.images[0].size for s in open_source(str(tmp_path / "shard.tar")).samples] == [(64, 48)] * 2


@pytest.mark.parametrize(("ratio", "efficiency", "status"), [(4.1, 0.98, 0), (3.9, 0.98, 1), (4.1, 0.96, 1)])
def test_the_status_says_whether_something_was_missed(
    ratio: float, efficiency: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(b, "compare_decoding", lambda repeats: ratio)
    monkeypatch.setattr(b, "measure_packing", lambda: efficiency)
    assert b.main(["--images", "0"]) == status
    assert ("MISSED" in capsys.readouterr().out) == bool(status)


def test_packs_are_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert b.measure_packing() > b.REQUIRED_EFFICIENCY
    assert "% of their tokens used" in capsys.readouterr().out
