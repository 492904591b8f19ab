"""Train the embedded tokenizer: a small byte-level BPE for the texts that tiny models read and write.

    python -m tools.build_tokenizer            writes medmo_core/data/text/tokenizer/tokenizer.json
    python -m tools.build_tokenizer --check    only says whether the stored file is what this would write

Its words are those of the embedded data set (drawn from its own templates) and of general medical English below. Any
other text still encodes, byte by byte where need be. The result depends on the texts alone.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from medmo_core.data.sample_text import SampleText
from medmo_core.data.text.tokenizer import PLAIN_ADDED_TOKENS, QWEN_SPLIT, SPECIAL_TOKENS, dress
from medmo_core.datasets.embedded.facts import load_facts
from medmo_core.datasets.embedded.tasks import EMBEDDED_TASKS, EmbeddedTasks
from medmo_core.profile import MEDMO, QWEN3_VL_TENS

OUTPUT = Path(__file__).resolve().parents[1] / "medmo_core/data/text/tokenizer/tokenizer.json"
DRAWS = 600  # samples per task of the embedded set
VOCAB_SIZE = 1536  # with the added tokens; a quarter of a tiny model's weights would otherwise be rows for rare words

# The numbers of a box and what stands around them cost one token each: a labelled box is then about thirteen tokens.
BOX_SPLIT = (
    r'\[\{"bbox_2d": \[|"\}, \{"bbox_2d": \[|\], "label": "|"\}\]'
    r"|<box>\[\[|\]\]</box>|\], \[|, (?=\p{N})|\p{N}{1,4}"
)

SENTENCES = """
Locate every lesion in this image and report its bounding box coordinates in JSON format. Detect all visible
structures. Outline the boxes of the following organs with their labels. Where is the abnormality? Give the bounding
box of the region. If nothing is visible, answer with an empty list. What imaging modality is shown? Is this a
computed tomography (CT) or a magnetic resonance (MR) image? Which plane is shown: axial, coronal or sagittal? Which
organ is the largest structure in this slice? Is contrast agent visible? How many nuclei are visible? Is there a mass
on the left side of the patient? Answer with yes or no. Answer the question with a single word or phrase. Choose one
of the options: A, B, C or D. Describe this medical image. Write a short radiology report with findings and
impression. Findings: The heart is normal in size. The lungs are clear. There is no pleural effusion or pneumothorax.
Impression: No acute cardiopulmonary abnormality. Stable appearance compared with the prior examination. There is a
small nodule in the right upper lobe measuring 12 mm in diameter. Follow-up is recommended. Enhancing mass in the left
hemisphere with surrounding edema. Mild consolidation in the lower lobe. The liver, spleen, pancreas, gallbladder,
stomach, both kidneys and adrenal glands are unremarkable. The aorta and the inferior vena cava are visible. The
portal vein and splenic vein are patent. Vertebral bodies and ribs are intact. No fracture is seen. The bladder and
the prostate are partially visible. The optic disc and the macula are visible in this fundus photograph of the left
eye. Microaneurysms are present. Histology with immunohistochemical staining. Fluorescence microscopy of cell nuclei.
Quantitative phase image of a cell. The patient presents with pain, fever and cough. History of hypertension and
diabetes. Treatment with antibiotics. Diagnosis, symptoms, disease, tumour, tumor, cancer, infection, inflammation,
bleeding, fluid, tissue, blood, bone, muscle. Contrast-enhanced, unenhanced, arterial and venous phase. T1-weighted,
T2-weighted, diffusion-weighted, fat-suppressed sequences. Chest radiograph, mammography, ultrasound, endoscopy,
dermoscopy, pathology slide, fundus photography, optical coherence tomography. Please correlate clinically. Further
evaluation with contrast-enhanced CT is suggested if clinically indicated. The cardiomediastinal silhouette is within
normal limits. Bilateral pleural effusions have increased since the previous study. Pneumonia, atelectasis,
cardiomegaly, emphysema, fibrosis, opacity, granuloma, metastasis, carcinoma, hemorrhage, thrombosis. Degenerative
changes of the thoracic and lumbar spine. Multiple calcified lymph nodes. Status post surgery with clips and catheter.
The abdomen and pelvis are otherwise within normal limits. There is evidence of a hypodense cyst in the right lobe of
the liver. What is the most likely diagnosis? Which of the following is true? What does this region show? How large is
it? Why? The correct answer is that this structure belongs to the digestive system; its function is to store and
release bile. It has been reported that the treatment of these patients should begin as soon as possible. However,
some cases may require more time. Because of the risk, we recommend to repeat the measurement after several weeks.
Both arms and legs, hands, feet, head and neck. one two three four five six seven eight nine ten first second third
next last other same different about between under over into who which when where what how many much does can could
would will shall must been being were was had have has do did not only also benign malignant acute chronic focal
diffuse irregular round oval dense bright dark homogeneous heterogeneous enhanced increased decreased millimetres
centimetres percent years months days male female adult child mg ml mm cm Hounsfield units intensity signal density
small medium large upper lower middle anterior posterior superior inferior lateral medial central peripheral left
right both sides image patient volume area size width height position centre top bottom corner edge present absent
uncertain visible not visible normal abnormal positive negative possible likely unlikely
"""


ROLES = ("system", "user", "assistant")  # stand in every turn: one token each


def texts() -> Iterator[str]:
    """Yield everything the tokenizer is trained on."""
    yield from SENTENCES.strip().splitlines()
    yield from ROLES * DRAWS
    names = sorted({name for record in load_facts() for name in record.labelled})
    for name in names:
        yield from (name, f"the {name}", name.capitalize(), f"{name}.")
    writers = [SampleText(profile) for profile in (QWEN3_VL_TENS, replace(MEDMO, step=10))]
    for task in EMBEDDED_TASKS:
        source = EmbeddedTasks(task, "train", crops=True)
        for number in range(DRAWS):
            sample = source.get(number % len(source), random.Random(f"tokenizer/{task}/{number}"))
            yield from (part["text"] for m in sample.messages for part in m["content"] if part["type"] == "text")
            yield from {writer.target_text(sample): None for writer in writers}  # once each, in order


def build_untrained() -> tokenizers.Tokenizer:
    """Return a tokenizer of single bytes."""
    backend = tokenizers.Tokenizer(models.BPE())
    dress(backend, f"{BOX_SPLIT}|{QWEN_SPLIT}")
    return backend


def build(corpus: Sequence[str]) -> tokenizers.Tokenizer:
    """Train the tokenizer on texts."""
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS) - len(PLAIN_ADDED_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    student = tokenizers.Tokenizer(models.BPE())
    shape = build_untrained()
    student.normalizer, student.pre_tokenizer = shape.normalizer, shape.pre_tokenizer
    student.train_from_iterator(corpus, trainer)
    result = tokenizers.Tokenizer(student.model)
    dress(result, f"{BOX_SPLIT}|{QWEN_SPLIT}")
    return result


def main() -> int:
    """Build, and write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the stored file instead of writing it")
    arguments = parser.parse_args()
    corpus = list(texts())
    backend = build(corpus)
    built = backend.to_str(pretty=True)
    if arguments.check:
        same = OUTPUT.is_file() and OUTPUT.read_text(encoding="utf-8") == built
        print(f"{OUTPUT}: {'as built' if same else 'differs: run python -m tools.build_tokenizer'}")
        return 0 if same else 1
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(built, encoding="utf-8")
    size = OUTPUT.stat().st_size
    print(f"{OUTPUT}: {backend.get_vocab_size()} tokens from {len(corpus)} texts, {size} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
