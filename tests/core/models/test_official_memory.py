"""Loading a checkpoint of more than 1 GB takes the model's own bytes and little else."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from medmo_core.models import MedMO, ModelConfig, TextConfig, VisionConfig
from medmo_core.models.official.write import save_checkpoint

LIMIT = 1.15
CONFIG = ModelConfig(
    vision=VisionConfig(depth=2, hidden_size=256, intermediate_size=512, num_heads=4, deepstack_visual_indexes=(0,)),
    text=TextConfig(vocab_size=32_000, hidden_size=2048, intermediate_size=6144, num_hidden_layers=4,
                    num_attention_heads=16, num_key_value_heads=4),
    image_token_id=31_990, video_token_id=31_991, vision_start_token_id=31_992, vision_end_token_id=31_993,
    bos_token_id=31_994, eos_token_id=31_995,
)  # fmt: skip

# Anonymous memory is sampled from a thread while the model loads; the baseline is taken once all is imported.
PROBE = textwrap.dedent(
    """
    import json, re, sys, threading
    from pathlib import Path
    import torch
    from medmo_core.models import PRESETS, MedMO
    from medmo_core.models.medmo import MedMO

    def anonymous():
        return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024

    samples, done = [], threading.Event()
    def watch():
        while not done.wait(0.002):
            samples.append(anonymous())

    if sys.argv[2] != "stored":
        # torch imports some 65 MB of Python for the first module built on meta; too much noise for half a gigabyte
        MedMO(PRESETS["debug"], device="meta")
    baseline = anonymous()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    model = MedMO.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]) if sys.argv[2] != "stored" else None)
    samples.append(anonymous())
    done.set()
    thread.join()
    parameters = list(model.parameters())
    right = all((p == 0.5).all().item() for p in parameters[:3] + parameters[-3:])
    print(json.dumps({"peak": max(samples) - baseline, "bytes": sum(p.nbytes for p in parameters),
                      "samples": len(samples), "right": right}))
    """
)


@pytest.fixture(scope="module")
def gigabyte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded fp32 checkpoint of 1.05 GB, every weight 0.5."""
    shapes = MedMO(CONFIG, device="meta").state_dict()
    half = torch.full((max(tensor.numel() for tensor in shapes.values()),), 0.5)
    tensors = {name: half[: tensor.numel()].view(tensor.shape) for name, tensor in shapes.items()}
    folder = tmp_path_factory.mktemp("gigabyte") / "checkpoint"
    return save_checkpoint(folder, tensors, config=CONFIG.to_dict(), max_shard_bytes=400 * 10**6)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc/self/status")
@pytest.mark.parametrize("dtype", ["stored", "bfloat16"])
def test_peak_anonymous_memory_is_the_model(gigabyte: Path, dtype: str) -> None:
    stored = sum(path.stat().st_size for path in gigabyte.glob("*.safetensors"))
    assert stored >= 10**9
    out = subprocess.run([sys.executable, "-c", PROBE, str(gigabyte), dtype], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout)
    ratio = found["peak"] / found["bytes"]
    print(f"{dtype}: peak {ratio:.3f} x {found['bytes'] / 1e9:.2f} GB, {found['samples']} samples")
    assert found["right"]
    assert found["bytes"] >= (stored if dtype == "stored" else stored // 2) * 0.999
    assert found["samples"] > 20
    assert ratio <= LIMIT
