"""Logits, loss and every gradient equal transformers' Qwen3VLForConditionalGeneration.

For text, one image, several images of different sizes, video, interleaved inputs and packed documents, in fp32.
"""

import itertools
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from medmo_core.batch import Batch, mrope_position_ids
from medmo_core.models import MedMO, ModelConfig, TextConfig, VisionConfig

transformers = pytest.importorskip("transformers")

VOCAB = 200
IDS = {
    "vision_start_token_id": 183,
    "vision_end_token_id": 184,
    "image_token_id": 186,
    "video_token_id": 187,
    "bos_token_id": 174,
    "eos_token_id": 176,
}
PATCH = 4
TOLERANCE = 1e-5

CASES = {
    "text_only": [[("text", 13)]],
    "one_image": [[("text", 3), ("image", 4, 6), ("text", 7)]],
    "several_sizes": [
        [("text", 2), ("image", 4, 6), ("text", 1), ("image", 2, 2), ("text", 2), ("image", 8, 4), ("text", 5)]
    ],
    "packed": [
        [("text", 3), ("image", 4, 4), ("text", 6)],
        [("text", 11)],
        [("image", 6, 2), ("text", 4), ("image", 4, 4), ("text", 2)],
        [("text", 1), ("image", 4, 4), ("text", 5)],
    ],
    "video": [[("text", 2), ("video", 3, 4, 4), ("text", 6)]],
    "interleaved": [
        [("text", 2), ("video", 2, 4, 4), ("text", 3), ("image", 4, 6), ("text", 4)],
        [("image", 2, 4), ("text", 2), ("video", 2, 2, 6), ("text", 5)],
    ],
}


def make_config(vision_head_dim: int, tied: bool, text_head_dim: int = 64) -> ModelConfig:
    sections = (text_head_dim // 2 - 2 * (text_head_dim // 6), text_head_dim // 6, text_head_dim // 6)
    return ModelConfig(
        vision=VisionConfig(
            depth=3,
            hidden_size=2 * vision_head_dim,
            intermediate_size=96,
            num_heads=2,
            patch_size=PATCH,
            num_position_embeddings=25,
            deepstack_visual_indexes=(0, 1),
        ),
        text=TextConfig(
            vocab_size=VOCAB,
            hidden_size=80,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=text_head_dim,
            rope_theta=10_000.0,
            mrope_section=sections,
        ),
        tie_word_embeddings=tied,
        **IDS,
    )


@dataclass
class Case:
    """One set of documents in our form and in transformers'."""

    batch: Batch
    theirs: dict[str, torch.Tensor]


def make_case(documents: list[list[tuple]], seed: int) -> Case:
    """Draw random tokens and pixels; stills are uint8 of one frame unless the batch also holds videos."""
    generator = torch.Generator().manual_seed(seed)
    mixed = any(kind == "video" for document in documents for kind, *_ in document)
    rows, patches, grids, kinds, positions = [], [], [], [], []
    for document in documents:
        ids: list[int] = []
        document_grids = []
        for kind, *size in document:
            if kind == "text":
                ids += torch.randint(0, 170, (size[0],), generator=generator).tolist()
                continue
            frames, height, width = size if kind == "video" else (1, *size)
            token = IDS[f"{kind}_token_id"]
            for _ in range(frames):
                stamp = torch.randint(0, 170, (2,), generator=generator).tolist() if kind == "video" else []
                ids += [
                    *stamp,
                    IDS["vision_start_token_id"],
                    *[token] * (height * width // 4),
                    IDS["vision_end_token_id"],
                ]
            pixels = torch.randint(0, 256, (frames * height * width, 3, 2, PATCH, PATCH), generator=generator)
            if kind == "image":
                pixels[:, :, 1] = pixels[:, :, 0]
            patches.append(pixels.to(torch.uint8))
            document_grids.append([frames, height, width])
            kinds.append(kind)
        rows.append(torch.tensor(ids))
        grid = torch.tensor(document_grids) if document_grids else None
        grids += document_grids
        positions.append(
            mrope_position_ids(rows[-1], grid, merge_size=2, image_token_id=186, video_token_id=187, sample_id="x")
        )
    ids = torch.cat(rows)
    labels = ids.clone()
    labels[torch.rand(len(ids), generator=generator) < 0.4] = -100
    labels[(ids == 186) | (ids == 187)] = -100
    ours = [p.flatten(1) if mixed else p[:, :, 0].flatten(1) for p in patches]
    batch = Batch(
        input_ids=ids,
        labels=labels,
        position_ids=torch.cat(positions, 1),
        cu_seqlens=torch.tensor([0, *map(len, rows)]).cumsum(0, dtype=torch.int32),
        patches={"qwen3_vl": torch.cat(ours)} if ours else {},
        image_grid_thw={"qwen3_vl": torch.tensor(grids)} if grids else {},
        sample_ids=tuple(f"s{i}" for i in range(len(rows))),
    )
    return Case(batch, _their_inputs(rows, labels, patches, grids, kinds))


def _their_inputs(rows, labels, patches, grids, kinds) -> dict[str, torch.Tensor]:
    def pad(parts, value):
        return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=value)

    ids = pad(rows, 0)
    mask = pad([torch.ones(len(row), dtype=torch.long) for row in rows], 0)
    types = (ids == 186).int() + 2 * (ids == 187).int()
    theirs = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": types,
        "labels": pad(labels.split([len(row) for row in rows]), -100),
    }
    for kind, pixel_key, grid_key in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        chosen = [i for i, k in enumerate(kinds) if k == kind]
        if chosen:
            raw = torch.cat([patches[i] for i in chosen]).flatten(1).double()
            theirs[pixel_key] = ((raw / 255 - 0.5) / 0.5).float()
            theirs[grid_key] = torch.tensor([grids[i] for i in chosen])
    return theirs


def make_models(config: ModelConfig, seed: int) -> tuple[MedMO, torch.nn.Module]:
    """Build both models with the same random weights, biases and norms included."""
    torch.manual_seed(seed)
    ours = MedMO.from_config(config)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs = transformers.Qwen3VLForConditionalGeneration(transformers.Qwen3VLConfig(**config.to_dict()))
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    theirs.tie_weights()
    return ours.train(), theirs.train()


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30)).item()


def compare(ours: MedMO, theirs: torch.nn.Module, case: Case, tolerance: float) -> None:
    out = theirs(**case.theirs)
    out.loss.backward()
    logits = ours(case.batch)
    loss = ours.loss(case.batch)
    loss.backward()
    mask = case.theirs["attention_mask"].bool()
    assert relative(logits, out.logits[mask]) < tolerance
    assert relative(loss, out.loss) < tolerance
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        expected = grads[name]
        if expected is None:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        if expected.norm() < 1e-12:
            assert parameter.grad.norm() < 1e-9, name
        else:
            assert relative(parameter.grad, expected) < tolerance, (name, relative(parameter.grad, expected))


@pytest.mark.parametrize(("vision_head_dim", "tied"), [(64, True), (72, False)], ids=["64-tied", "72-untied"])
@pytest.mark.parametrize("name", CASES)
def test_logits_loss_and_gradients_equal_transformers(name: str, vision_head_dim: int, tied: bool) -> None:
    ours, theirs = make_models(make_config(vision_head_dim, tied), seed=1)
    compare(ours, theirs, make_case(CASES[name], seed=2), TOLERANCE)


@pytest.mark.parametrize("violation", ["axes swapped", "tap of another layer", "exact GELU"])
def test_a_small_difference_is_noticed(violation: str) -> None:
    ours, theirs = make_models(make_config(64, True), seed=1)
    if violation == "axes swapped":
        time, height, width = ours.decoder.mrope_sections
        ours.decoder.mrope_sections = (time + height + width - 2, 1, 1)
    elif violation == "tap of another layer":
        ours.encoder.deepstack_layers = (0, 2)
    else:
        ours.encoder.blocks[0].mlp.approximate = "none"
    with pytest.raises(AssertionError):
        compare(ours, theirs, make_case(CASES["several_sizes"], seed=2), TOLERANCE)


@pytest.mark.parametrize("seed", range(8))
def test_random_configurations_equal_transformers(seed: int) -> None:
    rng = random.Random(seed)
    kv_heads, depth = rng.choice([1, 2, 3]), rng.choice([2, 3, 4])
    config = make_config(
        rng.choice([64, 72]), tied=rng.random() < 0.5, text_head_dim=rng.choice([64, 96, 128])
    ).override(
        depth=depth,
        num_position_embeddings=rng.choice([4, 16, 81]),
        deepstack_visual_indexes=tuple(sorted(rng.sample(range(depth), rng.choice([0, 1, 2])))),
        num_hidden_layers=rng.choice([2, 3]),
        num_attention_heads=kv_heads * rng.choice([1, 2, 4]),
        num_key_value_heads=kv_heads,
        rope_theta=rng.choice([1e4, 5e6]),
        attention_bias=rng.random() < 0.3,
        text={"hidden_size": rng.choice([40, 72])},
    )
    ours, theirs = make_models(config, seed)
    compare(ours, theirs, make_case(CASES[rng.choice([*CASES])], seed), TOLERANCE)


@pytest.mark.parametrize("seed", range(4))
def test_parameters_without_gradient_in_float64_stay_without(seed: int) -> None:
    """Everything in float64: only transformers' fp32 norms are left between the two, and zeros stay zeros."""
    ours, theirs = make_models(make_config(64, tied=seed % 2 == 0, text_head_dim=96), seed)
    case = make_case(CASES["interleaved" if seed < 2 else "packed"], seed)
    compare(ours.double(), theirs.double(), case, 1e-6)


@pytest.mark.parametrize("grid", [(2, 2), (2, 14), (18, 6), (34, 30)], ids=str)
def test_positions_of_any_grid_equal_transformers(grid: tuple[int, int]) -> None:
    """Grids smaller and larger than the table of learned positions, and one row of tokens."""
    ours, theirs = make_models(make_config(72, True), seed=3)
    case = make_case([[("image", *grid), ("text", 3)]], seed=4)
    with torch.no_grad():
        expected = theirs.model.get_image_features(case.theirs["pixel_values"], case.theirs["image_grid_thw"])
        tokens, deepstack = ours.model.visual(case.batch.patches, case.batch.image_grid_thw)
    assert relative(tokens, torch.cat(list(expected.pooler_output))) < 1e-5
    for mine, other in zip(deepstack, expected.deepstack_features, strict=True):
        assert relative(mine, torch.cat(list(other))) < 1e-5


def test_packed_documents_equal_separate_rows() -> None:
    ours, _ = make_models(make_config(64, True), seed=5)
    documents = CASES["packed"]
    packed = make_case(documents, seed=6).batch
    with torch.no_grad():
        logits, logps = ours(packed), ours.token_logprobs(packed, temperature=0.7)
    patch_start = 0
    seen_logits, seen_logps = [], []
    for index, (start, stop) in enumerate(itertools.pairwise(packed.cu_seqlens.tolist())):
        num_images = sum(kind == "image" for kind, *_ in documents[index])
        first = sum(kind == "image" for document in documents[:index] for kind, *_ in document)
        grids = packed.image_grid_thw["qwen3_vl"][first : first + num_images]
        patch_stop = patch_start + int(grids.prod(1).sum())
        single = Batch(
            input_ids=packed.input_ids[start:stop],
            labels=packed.labels[start:stop],
            position_ids=packed.position_ids[:, start:stop],
            cu_seqlens=torch.tensor([0, stop - start], dtype=torch.int32),
            patches={"qwen3_vl": packed.patches["qwen3_vl"][patch_start:patch_stop]} if num_images else {},
            image_grid_thw={"qwen3_vl": grids} if num_images else {},
        )
        patch_start = patch_stop
        with torch.no_grad():
            seen_logits.append(ours(single))
            seen_logps.append(ours.token_logprobs(single, temperature=0.7))
    assert relative(torch.cat(seen_logits), logits) < 1e-5
    assert relative(torch.cat(seen_logps), logps) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_from_padded_equals_the_native_batch(name: str) -> None:
    """What transformers' processor emits, padded on either side, packs into the same documents."""
    case = make_case(CASES[name], seed=7)
    native = case.batch
    theirs = dict(case.theirs)
    theirs.pop("mm_token_type_ids")
    if name == "packed":
        for row, mask in enumerate(theirs["attention_mask"]):  # pad on the left instead
            shift = int((mask == 0).sum())
            for key in ("input_ids", "attention_mask", "labels"):
                theirs[key][row] = theirs[key][row].roll(shift)
    packed = Batch.from_padded(**theirs, image_token_id=186, video_token_id=187)
    assert torch.equal(packed.input_ids, native.input_ids)
    assert torch.equal(packed.labels, native.labels)
    assert torch.equal(packed.position_ids, native.position_ids)
    assert torch.equal(packed.cu_seqlens, native.cu_seqlens)
    ours, _ = make_models(make_config(64, False), seed=8)
    with torch.no_grad():
        assert relative(ours(packed), ours(native)) < 1e-5


def test_gradient_checkpointing_changes_nothing() -> None:
    ours, _ = make_models(make_config(64, True), seed=10)
    batch = make_case(CASES["packed"], seed=11).batch
    ours.loss(batch).backward()
    plain = {name: p.grad.clone() for name, p in ours.named_parameters()}
    ours.zero_grad()
    ours.checkpoint_activations()
    ours.loss(batch).backward()
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter.grad, plain[name]), name


def test_deepstack_into_every_layer_equals_transformers() -> None:
    """As many taps as decoder layers: the last layer then serves all rows, not only those that are scored."""
    config = make_config(64, True).override(num_hidden_layers=2)
    ours, theirs = make_models(config, seed=12)
    compare(ours, theirs, make_case(CASES["several_sizes"], seed=13), TOLERANCE)


BLOCKED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers":
            raise ImportError("transformers is blocked in this process")

sys.meta_path.insert(0, Refuse())
import torch
from medmo_core.batch import Batch
from medmo_core.models import MedMO, ModelConfig

given = torch.load(sys.argv[1], weights_only=False)
model = MedMO.from_config(ModelConfig.from_dict(given["config"]))
model.load_state_dict(given["weights"])
batch = Batch(**given["batch"])
loss = model.loss(batch)
loss.backward()
grads = {name: parameter.grad for name, parameter in model.named_parameters()}
torch.save({"logits": model(batch).detach(), "loss": loss.detach(), "grads": grads}, sys.argv[2])
assert "transformers" not in sys.modules
"""


def test_our_side_never_imports_transformers(tmp_path: Path) -> None:
    config = make_config(72, False)
    ours, theirs = make_models(config, seed=14)
    case = make_case(CASES["interleaved"], seed=15)
    given = {"config": config.to_dict(), "weights": ours.state_dict(), "batch": vars(case.batch)}
    torch.save(given, tmp_path / "given.pt")
    command = [sys.executable, "-c", BLOCKED, str(tmp_path / "given.pt"), str(tmp_path / "out.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = torch.load(tmp_path / "out.pt")
    expected = theirs(**case.theirs)
    expected.loss.backward()
    mask = case.theirs["attention_mask"].bool()
    assert relative(out["logits"], expected.logits[mask]) < TOLERANCE
    assert relative(out["loss"], expected.loss) < TOLERANCE
    for name, parameter in theirs.named_parameters():
        assert relative(out["grads"][name], parameter.grad) < TOLERANCE, name
