"""The commands that README, pages, docstrings and configurations show, and how each is made short."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.test_configs import EMBEDDED, MINI_IMAGENET, NEEDS_DATA, briefly

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
PROGRAM = r"(?:[A-Z_]+=\S+ )*(?:python|pip|pytest|sphinx-build|ruff|mypy|wandb|sbatch|lightning-meta|configs/\S+sh) "
MEASURED = "<!-- measurements -->.*<!-- /measurements -->"  # with folders of its own; test_measurements.py checks them

ELSEWHERE = {
    **{
        f"python scripts/test.py --ckpt_path runs/{name}/0 --shots 5": "test_configs.py trains it; minutes of features"
        for name in ("pretrained_cifar_fs", "pretrained_fc100", "rfs_cifar_fs", "rfs_conv4_cifar_fs")
    },
    **{
        f"python scripts/fit.py --config configs/{name}.yaml --name {born} --model.teacher runs/{name}/0": (
            "test_rfs.py learns from a teacher"
        )
        for name, born in (
            ("rfs_glyphs", "born_again"),
            ("rfs_cifar_fs", "rfs_distill_cifar_fs"),
            ("rfs_conv4_cifar_fs", "born_again"),
        )
    },
    "python scripts/fit.py --config configs/meta_baseline_glyphs.yaml --model.backbone_weights "
    "runs/simple_shot_glyphs/0": "test_first_weights.py starts from a run",
    "python scripts/fit.py --config configs/multi_head_table_embeddings.yaml": (
        "its table is not shipped; test_category_embeddings.py trains on one like it"
    ),
    "python scripts/fit.py --config configs/protonet_table.yaml": "test_labelled_table.py runs it",
    "python scripts/fit.py --config configs/maml_table.yaml": "test_regression_table.py runs it",
    "lightning-meta fit --config protonet_glyphs": "test_shipped_configs.py runs it",
    "lightning-meta fit --config photos": "test_photos.py runs the script",
    "lightning-meta fit --config points.yaml": "test_regression_table.py runs it",
    "lightning-meta test --ckpt_path runs/points/0 --shots 2,10": "test_regression_table.py runs it",
    "lightning-meta predict": "test_photos.py runs the script",
    'pip install -e ".[pretrained]"': "an extra, which .ci/run installs with [dev]",
    "lightning-meta configs": "test_shipped_configs.py runs it",
    "lightning-meta configs omniglot": "test_shipped_configs.py runs it",
    "lightning-meta configs protonet_glyphs > mine.yaml": "test_shipped_configs.py runs it",
    "lightning-meta sweep --config maml_glyphs --trials 20": "hours; test_shipped_configs.py starts it",
    'pip install -e ".[dev]"': ".ci/run installs the package",
    "pip install -e .": ".ci/run installs the package",
    'pip install -e ".[docs]"': ".ci/run installs the package",
    "pip install 'lightning_meta[export]'": "an extra of a release",
    "pip install 'lightning_meta[wandb]'": "an extra of a release",
    "pip install 'lightning_meta[sweep]'": "an extra of a release",
    "pip install 'lightning_meta[torchjd]'": "an extra of a release",
    "pip install 'lightning_meta[sklearn,pretrained]'": "extras of a release",
    "pytest": "this is it",
    "python -m tests.report.verdict_simulation": "test_transfer_verdicts.py runs it, more briefly",
    "python -m tests.multitask.coverage_simulation": "a minute; test_table_calibration.py runs its first row",
    "pytest -m slow": "this is it",
    'pytest -m "slow or not slow"': "this is it",
    'LIGHTNING_META_FUZZ_SECONDS=900 pytest -m "slow or not slow" tests/robustness/test_fuzz_*.py': "this is it",
    "LIGHTNING_META_KILL_ROUNDS=4 pytest -m slow tests/run/test_resume.py": "this is it",
    "pytest -s tests/nn/test_layers.py": "part of this suite",
    "pytest -s tests/multitask/test_parity.py": "part of this suite",
    "pytest -s -m slow tests/multitask/test_weightings_ddp.py": "part of this suite",
    "pytest -s tests/test_lightning_tools.py": "part of this suite",
    "pytest -m gpu": "needs a card",
    "scripts/gpu.sh FOLDER": "needs a card",
    "ruff check .": ".ci/run",
    "ruff format --check .": ".ci/run",
    "mypy": ".ci/run",
    "sphinx-build docs build/docs": "test_docs.py builds the pages",
    "sphinx-build -W docs build/docs": "test_docs.py builds the pages",
    "python scripts/build_learn2learn.py": "downloads learn2learn",
    "python scripts/benchmark_sklearn.py": "minutes; test_benchmark_sklearn.py runs its parts",
    "python scripts/group_glyphs.py --steps 3000": "minutes; test_group_glyphs.py runs it, more briefly",
    "python scripts/make_tables.py": "rewrites the README; test_docs.py compares what it would write",
    **{
        f"python scripts/reproduce.py --table {options}": "test_reproduce.py runs a row, and compares the page"
        for options in (
            "few_shot --hours 1",
            "multi_task --only linear_enb multi_head_enb --seeds 3",
            "few_shot --publish",
            "multi_task --publish",
        )
    },
    **{
        f"python scripts/reproduce.py --table measurements {options}": "test_measurements.py runs rows and a plan"
        for options in ("--plan", "--hours 1")
    },
    **{
        f"python scripts/domains.py scripts/entries/{options}": "minutes; test_domains.py runs it and its parts"
        for options in (
            "nearest_mean.py scripts/entries/protonet.py",
            "maml.py --only sinusoid parkinsons --steps 500",
            "nearest_mean.py --only glyphs",
        )
    },
    "pip install 'lightning_meta[pretrained]'": "an extra of a release",
    **{
        f"python scripts/{command}": "test_photos.py runs it"
        for command in (
            "fit.py --config configs/photos.yaml --data.source.root FOLDER",
            "predict.py --ckpt_path runs/photos/0 --support FOLDER --query FOLDER2 --out predictions.csv",
            "predict.py --ckpt_path runs/photos/0 --support FOLDER --labels labels.csv --query FOLDER2 "
            "--out predictions.csv",
        )
    },
    "wandb login": "needs an account; tests/test_wandb_online.py has a stand-in of the service",
    "wandb sync": "needs an account",
    **{
        f"wandb sweep --project lightning_meta configs/sweeps/{file.name}": "needs an account"
        for file in sorted((ROOT / "configs" / "sweeps").iterdir())
    },
    "wandb agent ENTITY/lightning_meta/ID": "needs an account; tests/test_sweep.py runs what an agent starts",
    "CUDA_VISIBLE_DEVICES=1 wandb agent ENTITY/lightning_meta/ID": "needs an account and a card",
    "configs/slurm/torchrun.sh ADDRESS_OF_MACHINE_0 MACHINES NUMBER CONFIG": "how it is used; README has an example",
    **{
        f"python scripts/fit.py --config configs/{name}.yaml": "test_configs.py runs it"
        for name in sorted(EMBEDDED | NEEDS_DATA)
    },
    **{
        f"python scripts/fit.py --config configs/{name}_mini_imagenet.yaml": "its images are not free to ship"
        for name in MINI_IMAGENET
    },
    "python scripts/ladder.py --config configs/ladder_omniglot.yaml": "three methods on 50 alphabets: minutes",
    **{
        f"python scripts/ladder.py --config configs/ladder_weightings_{options}": "test_ladder_search.py runs one"
        for options in (
            "cifar100.yaml --jobs 2",
            "multi_mnist.yaml --jobs 2",
            "landmine.yaml --jobs 2",
        )
    },
    "python -m tests.multitask.two_task_toy": "minutes; test_two_task_toy.py follows two of its methods",
}
"""Commands that the test does not run, and the reasons."""


def _parts(line: str) -> list[str]:
    """The commands of a line, without its comment."""
    line = re.sub(r"\s+#.*$", "", line)
    return [part.strip() for part in line.split("&&") if part.strip()]


def blocks(text: str) -> list[str]:
    """The lines of all shell blocks, in order."""
    found = re.findall(r"^```(?:sh|bash|shell|console)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [part for block in found for line in block.splitlines() for part in _parts(line)]


def inline(text: str) -> list[str]:
    """The code spans that begin with the name of a program."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    shown = [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    return [part for code in shown if re.match(PROGRAM, f"{code} ") for part in _parts(code)]


def of_comments(text: str) -> list[str]:
    """Lines of a comment that are a command."""
    lines = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    lines = [re.sub(r"\[options.*|, then .*| # .*", "", line).strip() for line in lines]
    return [line for line in lines if re.match(PROGRAM, f"{line} ")]


def all_commands() -> list[str]:
    """Every command that is shown anywhere, once, README's first and in its order."""
    found: list[str] = []
    for page in PAGES:
        text = re.sub(MEASURED, "", page.read_text(), flags=re.DOTALL)
        found += [*blocks(text), *inline(text)]
    for file in sorted(ROOT.glob("lightning_meta/m*/**/*.py")):
        found += [command for command in inline(file.read_text()) if command.startswith("python scripts/")]
    for pattern in ("configs/*.yaml", "configs/sweeps/*.yaml", "configs/slurm/*"):
        for file in sorted(ROOT.glob(pattern)):
            found += of_comments(file.read_text())
    return list(dict.fromkeys(found))


def config_of(command: str) -> str:
    """The last configuration that a command names; "" where it names none."""
    return (re.findall(r"configs/(?:sweeps/)?(\w+)\.yaml", command) or [""])[-1]


def shortened(command: str) -> list[str]:
    """The options of a command of `fit` and those that make it short."""
    options = shlex.split(command)[2:]
    if {"--help", "--help_all", "--model.help", "--print_config"} & set(options):
        return options
    short = briefly(ROOT / "configs" / f"{config_of(command)}.yaml", Path())[5:]
    if "--trainer.devices" in options:  # every rank needs its share
        short = [option for option in short if "meta_batch_size" not in option]
        short += ["--trainer.accelerator=cpu", "--data.meta_batches_per_epoch=2"]
    if "image_folder" in command:
        sizes = {"ways": 3, "shots": 1, "queries": 1, "test_ways": 2, "test_queries": 1}
        short += [f"--data.{name}={value}" for name, value in sizes.items()]
    return [*options, *short, *(["--trainer.max_steps=4"] if "--ckpt_path" in options else [])]


def of_ladder(command: str) -> list[str]:
    """The options of a ladder and those that make it short."""
    short = ["--seeds", "[1]", "--trainer.max_steps=2", "--trainer.enable_progress_bar=false"]
    short += ["--data.batches_per_epoch=2", "--data.train_subset=5"]
    if "glyphs" in command:
        short += ["--data.tasks=[Greek, Armenian]"]
    if "rare_tasks" in command:
        short += ["--data.tasks=[task_000, task_001]"]
    return [*shlex.split(command)[2:], *short]


def of_sweep(command: str) -> list[str]:
    """The options of a sweep with one trial, and those that make it short."""
    options = shlex.split(command)[2:]
    short = briefly(ROOT / "configs" / f"{config_of(command)}.yaml", Path())[5:]
    return [*options, "--trials", "1", *(option for option in short if "inner_steps" not in option)]  # the sweep's own
