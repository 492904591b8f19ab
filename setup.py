"""Build script. Ranges stay open here; `constraints.txt` pins what development and CI use."""

import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))  # isolated builds do not put the project root on the path
from native_build import native_build_arguments  # noqa: E402

EXTRAS = {
    "cuda": ["triton>=3.6", "liger-kernel>=0.8", "xformers>=0.0.35"],
    "quant": ["torchao>=0.18"],
    "medical": ["pydicom>=3.0", "nibabel>=5.3", "tifffile>=2025.1"],
    "demo": ["rich>=13", "matplotlib>=3.9", "tensorboard>=2.18", "jinja2>=3.1"],
    # What collects and reports figures, and the peers that run anywhere; those for GPUs are in "cuda".
    "bench": [
        "pytest>=8.3",
        "pytest-benchmark>=5.1",
        "matplotlib>=3.9",
        "scipy>=1.15",
        "transformers>=5.0",
        "pycocotools>=2.0.8",
    ],
    "hub": ["huggingface-hub>=1.0"],
    "lora": ["peft>=0.18"],
    "parquet": ["pyarrow>=18"],
}
EXTRAS["test"] = sorted(
    {
        *EXTRAS["medical"],
        *EXTRAS["demo"],
        *EXTRAS["bench"],
        *EXTRAS["quant"],
        *EXTRAS["lora"],
        *EXTRAS["parquet"],
        # The CPU build of torch brings no Triton; kernels are tested in its interpreter and compiled ahead of time.
        "triton>=3.6",
        "liger-kernel>=0.8",
        "cmake>=3.25",
        "ninja>=1.11",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "ml-dtypes>=0.5",  # bf16 in Triton's interpreter
        "ruff>=0.15",
        "pyright>=1.1.400",
    }
)

setup(
    name="medmo",
    version="0.1.0",
    description="Train, measure and run multimodal medical models that point at what they say",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11",
    package_dir={"medmo_kernels": "kernels/medmo_kernels", "medmo_recipes": "recipes"},
    packages=[
        *find_packages(include=["medmo_core", "medmo_core.*"]),
        *find_packages("kernels"),
        "medmo_recipes",
        *(f"medmo_recipes.{name}" for name in find_packages("recipes")),
    ],
    package_data={
        "medmo_core": [
            "py.typed",
            "data/text/tokenizer/*",
            "datasets/embedded/files/*",
            "datasets/embedded/files/*/*",
            "demo/files/*.*",
            "demo/files/checkpoint/*",
        ],
        "medmo_kernels": ["py.typed", "*.so", "*/table.json"],
        "medmo_recipes": ["pages/templates/*.html.j2", "pages/quickstart_study.json"],
    },
    install_requires=["torch>=2.11", "numpy>=2.0", "safetensors>=0.5", "einops>=0.8", "pillow>=11", "tokenizers>=0.21"],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["medmo = medmo_recipes.cli:main"]},
    **native_build_arguments(),
)
