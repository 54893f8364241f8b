"""The examples of README, pages and docstrings are run, and the names in them exist."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from make_tables import META, MULTI_TASK, SOURCES, TABLES, WEIGHTINGS, at_a_glance, with_classes, with_tables
from PIL import Image

import lightning_meta
from lightning_meta.cli import main
from lightning_meta.cli.ladder.file import read_ladder
from lightning_meta.cli.main import MODULES
from lightning_meta.cli.sweep.file import read_sweep
from lightning_meta.describing import fixed_options
from lightning_meta.import_paths import import_class, public_path
from lightning_meta.meta import MAML, MetaModule
from lightning_meta.multitask import MultiTaskModule
from lightning_meta.nn import MLP
from lightning_meta.run import RunLogger
from lightning_meta.testing import toys
from lightning_meta.weightings import Weighting
from tests import methods
from tests.test_configs import briefly

ROOT = Path(__file__).parents[1]
PACKAGE = sorted(ROOT.glob("lightning_meta/**/*.py"))
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
BASES = (MetaModule, MultiTaskModule, Weighting)


METHODS = [*META, *MULTI_TASK, *WEIGHTINGS]
by_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a page: how many lines stand before each, and its text."""
    text = page.read_text()
    fences = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, found.start(1)), found[1]) for found in fences]


def shell_commands(page: Path) -> list[str]:
    """The commands of this repository that a page shows, without their comments."""
    lines = [
        shlex.join(shlex.split(line, comments=True)) for _, text in blocks(page, "sh") for line in text.split("\n")
    ]
    return [part for line in lines for part in line.split(" '&&' ") if part.startswith("python scripts/")]


def commands_of(method: type) -> list[str]:
    """The commands that a docstring shows."""
    return [" ".join(code.split()) for code in re.findall(r"`(python scripts/[^`]+)`", method.__doc__ or "")]


def parsed(command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The configuration that `fit` makes of a command's options; of others, whether their parsers take them."""
    script, *options = shlex.split(command)[1:]
    assert (ROOT / script).is_file()
    name = Path(script).stem
    if name == "fit":
        asked = [] if any("help" in option for option in options) else ["--print_config"]
        with pytest.raises(SystemExit) as ended:
            main(["fit", *options, *asked])
        assert not ended.value.code
        return yaml.safe_load(capsys.readouterr().out) if asked else {}
    if name in ("predict", "compare", "curves", "ladder", "sweep"):
        room = importlib.import_module(f"lightning_meta.cli.{MODULES[name]}")
        parser = getattr(room, f"{name}_parser" if name in ("compare", "curves") else "make_parser")()
        if name == "ladder":
            given, of_fit = parser.parse_known_args(options)
            read_ladder(given.config, Path("runs"), given.seeds, given.rungs, of_fit)
        elif name == "sweep":
            given, of_fit = parser.parse_known_args(options)
            parsed(shlex.join(["python", "scripts/fit.py", *read_sweep(given.config).options, *of_fit]), capsys)
        else:
            parser.parse_args(options)
    elif name in ("reproduce", "domains"):
        importlib.import_module(name).arguments(options)
    else:
        assert not options, f"no test knows the options of {name}"
    return {}


# What is shown is run.


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs that README takes for granted, of two steps each, and a learned task."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("protonet_glyphs", "maml_glyphs", "multi_head_glyphs"):
        assert main(briefly(ROOT / "configs" / f"{name}.yaml", folder / "runs")) == 0
    for file in ("photos/a/1.jpg", "photos/a/2.jpg", "photos/b/1.jpg", "new.jpg"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), "red" if "/a/" in file else "blue").save(folder / file)
    curves = [f"curve {c},{x / 9 - 1},{20 + c + x % 3}" for c in range(8) for x in range(20)]
    (folder / "points.csv").write_text("\n".join(["curve,x,y", *curves]) + "\n")
    (folder / "points.yaml").write_text(next(y for _, y in blocks(ROOT / "docs" / "data.md", "yaml") if "CNP" in y))
    brief = ["--trainer.max_steps=2", "--data.val_tasks=2", "--data.test_tasks=2", "--trainer.accelerator=cpu"]
    source = f"--data.source.path={folder / 'points.csv'}"
    assert main(["fit", "--config", str(folder / "points.yaml"), source, f"--runs={folder / 'runs'}", *brief]) == 0
    predictor = lightning_meta.load(folder / "runs" / "protonet_glyphs" / "0").predictor(
        torch.rand(2, 1, 28, 28), ["a", "b"]
    )
    for name in ("task.pt2", "task.onnx"):
        predictor.export(folder / name)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_one_after_the_other(page: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    namespace: dict[str, Any] = {"__name__": "readers_session"}
    drawn = (torch.rand(9, 1, 28, 28) > 0.9).float()  # light on dark, as in training
    namespace |= dict(zip(("images", "new_images", "support_images"), drawn.split([3, 2, 4]), strict=True))
    code = "".join(text for _, text in blocks(page, "python"))
    # With two steps to an epoch, every run ends with a validation.
    sizes = "queries=5, meta_batches_per_epoch=2, val_tasks=2, test_tasks=2)"
    shorter = {"max_steps=500": "max_steps=2", "queries=5)": sizes}
    for line, text in blocks(page, "python"):
        for long, short in shorter.items():
            assert "lm.fit(" not in code or long in code, f"this test makes {long!r} of the page shorter"
            text = text.replace(long, short)
        text = text.replace("tasks=10_000", "tasks=2")
        text = text.replace("labels[1::2], error=0.1", "labels[1::2], error=0.5")  # for fewer photographs
        exec(compile("\n" * line + text, page, "exec"), namespace)
    if page.name == "images.md":
        assert set(namespace["predictor"](namespace["new_images"])) <= {"alpha", "beta", "gamma"}
    if page.name == "data.md":
        assert namespace["mean"].shape == namespace["deviation"].shape == (3, 1)
    if page.name == "extending.md":
        patients = lightning_meta.load("runs/patients/0", allow=[namespace["Survival"], namespace["Robust"]])
        assert [type(task).__name__ for task in patients.spec.tasks.values()] == ["Survival", "Robust"]
        assert patients.spec.tasks["dose"].scale != ()
        assert namespace["run"].metrics["test/mean_absolute_error"] > 0
        assert Path("runs/waves/0/checkpoints/best.ckpt").is_file()
    if page.name == "scikit_learn.md":
        assert namespace["classifier"].predict(["new.jpg"]).tolist() == ["b"]
        assert namespace["regressor"].score(namespace["X"], namespace["y"]) > 0.9
    if page.name == "README.md":
        assert namespace["run"].directory == Path("runs/mine/0")
        own = namespace["NearestExample"]
        assert type(lightning_meta.load("runs/mine/0", allow=[own])) is own


@pytest.mark.parametrize("file", [f for f in PACKAGE if ">>>" in f.read_text()], ids=lambda file: file.stem)
def test_examples_of_docstrings(file: Path) -> None:
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    failed, attempted = doctest.testmod(importlib.import_module(module))
    assert attempted
    assert not failed


@pytest.mark.parametrize(
    "command", sorted({c for page in PAGES for c in shell_commands(page)}), ids=lambda command: command[15:70]
)
def test_commands_of_the_pages(
    command: str, runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if " scripts/test.py " in command:  # its options are those of a run
        monkeypatch.chdir(runs)
        quick = ["--tasks=2", "--trainer.enable_progress_bar=false"]
        assert main(["test", *shlex.split(command)[2:], *quick]) == 0
    else:
        monkeypatch.chdir(ROOT)
        parsed(command, capsys)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_of_the_pages(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for _, text in blocks(page, "yaml"):
        (tmp_path / "shown.yaml").write_text(text)
        parsed(f"python scripts/fit.py --config configs/maml_glyphs.yaml --config {tmp_path / 'shown.yaml'}", capsys)


# What is named is there.


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_files_that_a_page_names(page: Path) -> None:
    named = re.findall(r"(?<![\w/])(?:configs|docs|lightning_meta|scripts|tests)/[\w./-]+\.[a-z]\w*", page.read_text())
    assert not [file for file in named if not (ROOT / file).exists()]


def test_every_class_has_its_place_on_the_pages() -> None:
    pages = [with_classes((ROOT / "docs" / f"{name}.md").read_text()) for name in ("methods", "reference")]
    named = re.findall(r"^\.\. autoclass:: (\S+)$", pages[0], re.MULTILINE)
    classes = [import_class(path) for path in named]
    assert len(classes) == len(set(classes))
    assert set(METHODS) | set(BASES) < set(classes)
    listed = re.findall(r"[\w.]+", re.findall(r":members: (\w.*)", pages[1])[0])
    for name in lightning_meta.__dir__():
        public = getattr(lightning_meta, name)
        assert inspect.ismodule(public) or public in classes or name in listed or f":: {name}\n" in pages[1], name


@pytest.mark.parametrize("page", TABLES)
def test_the_tables_of_a_page_are_those_of_the_classes(page: str) -> None:
    assert with_tables(page) == (ROOT / page).read_text(), f"{page}: run `python scripts/make_tables.py`"


def test_the_readme_is_short() -> None:
    assert len([word for word in PAGES[0].read_text().split() if word != "|"]) < 1300  # bars of tables are no words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    links = re.findall(r"\]\(((?!https?:)[^)\s]+)\)", page.read_text())
    parts = [link.partition("#") for link in links]
    targets = [(page.parent / file if file else page, anchor) for file, _, anchor in parts]
    assert not [str(file) for file, _ in targets if not file.exists()]
    assert not [anchor for file, anchor in targets if anchor and anchor not in anchors(file)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and Sphinx make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("cls", [*META, *MULTI_TASK, *SOURCES], ids=lambda cls: cls.__name__)
def test_a_docstring_fills_a_row_of_the_readme(cls: type) -> None:
    labels = set(at_a_glance(cls))
    if cls in SOURCES:
        assert labels - {"From"} in (
            {"Classes", "Examples"},
            {"Tasks", "Held out"},
            {"Classes", "Examples", "Tasks", "Held out"},
        )
        assert "From" in labels
    else:
        assert labels == {"Shared", "Own", "New task"}


@pytest.mark.parametrize("method", [*META, *MULTI_TASK], ids=lambda method: method.__name__)
def test_help_lists_and_explains_every_option(method: type, capsys: pytest.CaptureFixture[str]) -> None:
    """Options of the base classes, which a constructor takes as `**options`, are included."""
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--model.help", public_path(method)])
    text = " ".join(capsys.readouterr().out.split())
    family = [c for c in method.__mro__ if issubclass(c, (MetaModule, MultiTaskModule)) and "__init__" in vars(c)]
    names = {name for c in family for name in inspect.signature(vars(c)["__init__"]).parameters} - {"self", "options"}
    assert {"optimizer", "lr_scheduler"} < names
    fixed = fixed_options(method)
    assert not [name for name in fixed if f"--model.{name} " in text]
    for name in names - fixed:
        explained = next(found for c in family if (found := _explained(c, name)))
        shown = re.search(rf"--model\.{name}[ ,][^(]*?{re.escape(explained[:30])}", text)
        assert shown, f"--model.{name}: {explained}"


def _explained(cls: type, name: str) -> str:
    """The first line of what a docstring says of an argument."""
    found = re.search(rf"^    {name}: (.+)$", inspect.cleandoc(cls.__doc__ or ""), re.MULTILINE)
    return found[1] if found else ""


@by_method
def test_a_method_says_how_to_run_it(
    method: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = inspect.cleandoc(method.__doc__ or "")
    sections = re.findall(r"^(Run it|Logged|Deviations|Args):$", text, re.MULTILINE)
    expected = ["Run it", "Logged", "Deviations"] if method.__name__ not in ("Equal", "Fixed") else ["Run it", "Logged"]
    assert sections[: len(expected)] == expected
    for config in set(re.findall(r"configs/\w+\.yaml", text)):
        assert (ROOT / config).is_file()
    commands = commands_of(method)
    models = [parsed(command, capsys).get("model", {}) for command in commands]
    path = public_path(method)
    assert path in [m.get("class_path") for m in models] + [
        (m.get("init_args", {}).get("weighting") or {}).get("class_path") for m in models
    ]


LOGGING: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    **{n: (make, methods.sines if n in methods.OF_SINES else toys.pictures) for n, make in methods.META.items()},
    "MAML of regression": (lambda: MAML(MLP(1, (8,)), inner_steps=1), methods.sines),
    **{name: (make, toys.sums) for name, make in methods.MULTI_TASK.items()},
    **{
        cls.__name__: (partial(methods.MULTI_TASK["MultiHead"], weighting=methods.weighting(cls)), toys.sums)
        for cls in WEIGHTINGS
    },
}


@pytest.mark.parametrize("case", LOGGING)
def test_every_logged_metric_is_explained(case: str, tmp_path: Path) -> None:
    make, make_data = LOGGING[case]
    module, data, logger = make(), make_data(), RunLogger(tmp_path)
    quiet: dict[str, Any] = dict.fromkeys(
        ("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    steps: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 2, "num_sanity_val_steps": 0}
    trainer = lightning.Trainer(logger=logger, log_every_n_steps=1, accelerator="cpu", **steps, **quiet)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    logger.finalize("success")
    classes = [*type(module).__mro__, *(type(m) for m in module.modules() if isinstance(m, Weighting)), Weighting]
    text = " ".join(c.__doc__ or "" for c in classes if issubclass(c, BASES))
    explained = [_alike(name) for name in re.findall(r"`((?:train|val|test)/[^`]+)`", text)]
    patterns = [re.escape(name).replace("<j>", r"\d+").replace("<task>", r"\w+") for name in explained]
    logged = [name for name in logger.file.read_text().splitlines()[0].split(",") if "/" in name]
    assert {"train/loss", "test/loss"} <= set(logged)
    assert not [name for name in logged if not any(re.fullmatch(p, _alike(name)) for p in patterns)]


def _alike(name: str) -> str:
    """Validation and test are explained in one, and so are the metrics by which tasks are judged."""
    return re.sub(r"/(mse|r2)(?!_median)", "/accuracy", name.replace("test/", "val/"))


# The pages.


@pytest.mark.slow
def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "cache")]
    done = subprocess.run([*command, str(ROOT / "docs"), str(tmp_path / "html")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    front, methods = ((tmp_path / "html" / f"{page}.html").read_text() for page in ("index", "methods"))
    for image in re.findall(r"!\[[^\]]*\]\(docs/([^)]+)\)", PAGES[0].read_text()):
        name = Path(image).name
        assert f'src="_images/{name}"' in front
        assert (tmp_path / "html" / "_images" / name).is_file()
    assert 'href="methods.html#lightning_meta.MAML"' in front  # README's table leads to the pages
    for page in (tmp_path / "html").glob("*.html"):  # readable without a network
        assert not re.search(r"""<(script|link|img)\b[^>]*\b(src|href)=["']?(https?:)?//""", page.read_text())
    assert methods.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') > len(METHODS) / 2
    text = unescape(re.sub(r"<[^>]+>", "", methods[methods.index("<article") :]))
    assert re.search(r"class lightning_meta\.MAML\(\s*backbone: nn.Module,\s*inner_lr: float = 0.01,", text)
    assert "`" not in text
    assert "$" not in text
    for heading in ("Run it", "Logged", "Deviations"):
        assert methods.count(f'<p class="rubric">{heading}</p>') >= len(METHODS) - 2
