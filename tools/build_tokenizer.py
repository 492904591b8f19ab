"""Train the embedded tokenizer: a small byte-level BPE for the texts that tiny models read and write.

    python tools/build_tokenizer.py            writes medmo_core/data/tokenizer/tokenizer.json
    python tools/build_tokenizer.py --check    only says whether the stored file is what this would write

Its words are those of the embedded data set (drawn from its own templates) and of general medical English below. Any
other text still encodes, byte by byte where need be. The result depends on the texts alone.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from medmo_core.boxes import Boxes, print_boxes
from medmo_core.data.tokenizer import PLAIN_ADDED_TOKENS, QWEN_SPLIT, SPECIAL_TOKENS, dress
from medmo_core.datasets.facts_table import load_facts

OUTPUT = Path(__file__).resolve().parents[1] / "medmo_core/data/tokenizer/tokenizer.json"
VOCAB_SIZE = 1536  # with the added tokens; a quarter of a tiny model's weights would otherwise be rows for rare words

# What stands around the numbers of a box costs one token each: a labelled box is then about twenty tokens.
BOX_SPLIT = (
    r'\[\{"bbox_2d": \[|"\}, \{"bbox_2d": \[|\], "label": "|"\}\]'
    r"|<box>\[\[|\]\]</box>|\], \[|, (?=\p{N})"
)

SENTENCES = """
Locate every lesion in this image and report its bounding box coordinates in JSON format.
Detect all visible structures. Outline the boxes of the following organs with their labels.
Where is the abnormality? Give the bounding box of the region. If nothing is visible, answer with an empty list.
What imaging modality is shown? Is this a computed tomography (CT) or a magnetic resonance (MR) image?
Which plane is shown: axial, coronal or sagittal? Which organ is the largest structure in this slice?
Is contrast agent visible? How many nuclei are visible? Is there a mass on the left side of the patient?
Answer with yes or no. Answer the question with a single word or phrase. Choose one of the options: A, B, C or D.
Describe this medical image. Write a short radiology report with findings and impression.
Findings: The heart is normal in size. The lungs are clear. There is no pleural effusion or pneumothorax.
Impression: No acute cardiopulmonary abnormality. Stable appearance compared with the prior examination.
There is a small nodule in the right upper lobe measuring 12 mm in diameter. Follow-up is recommended.
Enhancing mass in the left hemisphere with surrounding edema. Mild consolidation in the lower lobe.
The liver, spleen, pancreas, gallbladder, stomach, both kidneys and adrenal glands are unremarkable.
The aorta and the inferior vena cava are visible. The portal vein and splenic vein are patent.
Vertebral bodies and ribs are intact. No fracture is seen. The bladder and the prostate are partially visible.
The optic disc and the macula are visible in this fundus photograph of the left eye. Microaneurysms are present.
Histology with immunohistochemical staining. Fluorescence microscopy of cell nuclei. Quantitative phase image of a cell.
The patient presents with pain, fever and cough. History of hypertension and diabetes. Treatment with antibiotics.
Diagnosis, symptoms, disease, tumour, tumor, cancer, infection, inflammation, bleeding, fluid, tissue, blood, bone, muscle.
small medium large upper lower middle anterior posterior superior inferior lateral medial central peripheral
left right both sides image patient volume area size width height position centre top bottom corner edge
present absent uncertain visible not visible normal abnormal positive negative possible likely unlikely
"""


def texts() -> Iterator[str]:
    """Yield everything the tokenizer is trained on."""
    yield from SENTENCES.strip().splitlines()
    names = sorted({s.name for record in load_facts() for s in record.structures})
    for index, name in enumerate(names):
        for article in ("", "the ", "The "):
            yield f"{article}{name}"
        row = [7 * index % 400, 11 * index % 300, 512 + 3 * index % 400, 400 + 5 * index % 500]
        boxes = Boxes([row, row], "norm1000", (1000, 1000), (name, names[index - 1]))  # type: ignore[arg-type]
        yield print_boxes(boxes, "qwen3_vl_json")
        yield print_boxes(boxes, "medmo_box")


def build() -> tokenizers.Tokenizer:
    """Train the tokenizer."""
    backend = tokenizers.Tokenizer(models.BPE())
    dress(backend, f"{BOX_SPLIT}|{QWEN_SPLIT}")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS) - len(PLAIN_ADDED_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    plain = tokenizers.Tokenizer(models.BPE())
    plain.normalizer, plain.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    plain.train_from_iterator(texts(), trainer)
    result = tokenizers.Tokenizer(plain.model)
    dress(result, f"{BOX_SPLIT}|{QWEN_SPLIT}")
    return result


def main() -> int:
    """Build, and write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the stored file instead of writing it")
    arguments = parser.parse_args()
    built = build().to_str(pretty=True)
    if arguments.check:
        same = OUTPUT.is_file() and OUTPUT.read_text(encoding="utf-8") == built
        print(f"{OUTPUT}: {'as built' if same else 'differs: run tools/build_tokenizer.py'}")
        return 0 if same else 1
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(built, encoding="utf-8")
    count = len(list(itertools.islice(texts(), 10**7)))
    print(f"{OUTPUT}: {VOCAB_SIZE} tokens from {count} texts, {OUTPUT.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
