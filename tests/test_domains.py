"""The benchmark of domains: what a method file may say, that tasks are fixed, that runs resume, and the page."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import domains
import pytest
import torch
from domain_benchmark.domains import DOMAINS, Domain, Setting
from domain_benchmark.entry import Entry, read_entry
from domain_benchmark.episodes import episodes_sha256
from domain_benchmark.measure import measure, measured, note
from domain_benchmark.page import page, tables
from domain_benchmark.results import Result, finished, folder_of, merged, results_of
from make_gallery import PAGE as GALLERY
from make_gallery import figures, gallery
from reproducing.page import with_parts
from reproducing.rows import ROOT, TABLES, read_rows
from reproducing.storing import RunFolder
from sklearn.linear_model import Ridge

import lightning_meta as lm
from lightning_meta.testing.toys import NoisyPictures

ENTRIES = sorted((ROOT / "scripts" / "entries").glob("*.py"))
BY_NAME = {domain.name: domain for domain in DOMAINS}


# The method file.

BUILD = "import lightning_meta as lm\ndef build(domain):\n    return lm.MAML(domain.backbone())\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def build(domain):\nreturn 1\n", r"mine\.py:2: it cannot be imported: IndentationError"),
        ("import nothing_of_this_name\n", r"mine\.py:1: it cannot be imported: ModuleNotFoundError"),
        ("steps = 3\n", "it has no function build"),
        (
            "def build(domain):\n    return 3\n",
            "build returned a int for sinusoid; expected a lightning_meta.Meta",
        ),
        ("def build(domain):\n    return domain.nothing\n", r"mine\.py:2: build fails for sinusoid: AttributeError"),
        (f"STEPS = 'many'\n{BUILD}", "STEPS is 'many'; expected a number of training steps"),
        (f"{BUILD}def training(domain):\n    return {{'test_tasks': 3}}\n", "training sets test_tasks for sinusoid"),
        (f"{BUILD}def training(domain):\n    return {{'rotations': ['test']}}\n", "the split train alone"),
        (f"{BUILD}def training(domain):\n    return 3\n", "training returned 3 for sinusoid; expected a dict"),
    ],
)
def test_a_mistake_in_a_method_file_is_one_line_and_nothing_is_run(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(content)
    options = [str(tmp_path / "mine.py"), "--only", "sinusoid", "--runs", str(tmp_path / "results")]
    assert domains.main(options) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(f"^domains: error: .*{message}", said)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere.py"], "nowhere.py: a method is entered as a Python file; there is no such file"),
        ([str(ENTRIES[0]), "--only", "glyph"], "--only: there is no domain 'glyph'; expected some of glyphs, omniglot"),
        ([str(ENTRIES[0]), "--hours", "0"], "expected hours above 0"),
        ([str(ENTRIES[0]), str(ENTRIES[0])], "two methods have one file name"),
    ],
)
def test_a_mistake_in_the_options_is_named(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert domains.main(options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("file", ENTRIES, ids=lambda file: file.stem)
def test_the_shipped_entries_build_a_module_or_say_that_they_do_not_apply(file: Path) -> None:
    entry = read_entry(file)
    made = {domain.name: entry.build(domain) for domain in DOMAINS}
    refused = {name for name, module in made.items() if module is None}
    regression = {domain.name for domain in DOMAINS if domain.regression}
    everything = {domain.name for domain in DOMAINS}
    assert refused == {"protonet": regression, "ridge": everything - regression}.get(entry.name, set())


def test_the_ridge_entry_is_that_of_scikit_learn() -> None:
    module = read_entry(ROOT / "scripts" / "entries" / "ridge.py").build(BY_NAME["parkinsons"])
    assert module is not None
    x, y = torch.randn(10, 19), torch.randn(10, 2) + 3
    expected = Ridge(alpha=30).fit(x, y).predict(x[:5] + 1)
    found = module.predict(module.adapt(lm.Examples(x, y), 0), x[:5] + 1)
    assert found.numpy() == pytest.approx(expected, abs=1e-5)


def test_a_folder_changes_with_the_file_the_steps_and_the_seed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BUILD)
    entry, domain = read_entry(tmp_path / "mine.py"), BY_NAME["sinusoid"]
    folders = [folder_of(tmp_path, entry, domain, steps, seed) for steps, seed in ((1, 1), (2, 1), (1, 2))]
    (tmp_path / "mine.py").write_text(f"{BUILD}# changed\n")
    folders.append(folder_of(tmp_path, entry, domain, 1, 1))
    folders.append(folder_of(tmp_path, entry, replace(domain, settings=domain.settings[:1]), 1, 1))
    assert len(set(folders)) == 5


# The tasks.


def test_the_tasks_are_those_of_the_page_for_any_seed_and_training(tmp_path: Path) -> None:
    domain = BY_NAME["sinusoid"]
    for setting in domain.settings:
        data = domain.data(setting, domain.source(), seed=7, meta_batch_size=3, shots=2)
        assert episodes_sha256(data, tmp_path / "none.csv") == setting.sha256
        parts = [torch.cat([b.support.x, b.query.x], 1) for b in data.test_dataloader()]
        assert hashlib.sha256(torch.cat(parts).numpy().tobytes()).hexdigest() == setting.sha256


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_the_tasks_of_every_domain_are_those_of_the_page(domain: Domain, tmp_path: Path, data_folder: Path) -> None:
    if domain.missing():
        pytest.skip(f"needs {domain.missing()}")
    source = domain.source()
    for setting in domain.settings:
        drawn = episodes_sha256(domain.data(setting, source), tmp_path / "tasks.csv")
        if domain.name != "glyphs" or source.fingerprint().startswith("895a2892d7b0"):  # other fonts, other classes
            assert drawn == setting.sha256


# Training and testing.

TINY = replace(BY_NAME["sinusoid"], settings=[Setting(5, 10, 30, ""), Setting(10, 10, 30, "")])


@pytest.fixture
def maml(tmp_path: Path) -> Entry:
    (tmp_path / "mine.py").write_text(BUILD)
    return read_entry(tmp_path / "mine.py")


def test_a_training_and_its_tests_are_done_once_and_resumed(maml: Entry, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, maml, TINY, 2, 1)
    measure(maml, TINY, folder, 2, 1, "cpu")
    assert finished(folder, TINY)
    lines = results_of(folder, maml, TINY, 2, 1)
    assert [(line.setting, line.metric, line.steps, line.planned) for line in lines] == [
        ("5 examples", "mse", "2", "2000"),
        ("10 examples", "mse", "2", "2000"),
    ]
    (first, second) = measured(folder)["tests"].values()
    checkpoint = folder / "0" / "checkpoints" / "last.ckpt"
    before = checkpoint.stat().st_mtime_ns
    note(folder, tests={"5 examples": first})  # as if it was stopped before its second test
    assert not finished(folder, TINY)
    measure(maml, TINY, folder, 2, 1, "cpu")
    assert checkpoint.stat().st_mtime_ns == before
    assert RunFolder(folder).run == folder / "0"
    again = measured(folder)["tests"]["10 examples"]
    assert (again["score"], again["half"], again["episodes"]) == (second["score"], second["half"], second["episodes"])
    trained = lm.load(folder / "0")
    (expected,) = lm.evaluate(trained, TINY.data(TINY.settings[1], TINY.source()), accelerator="cpu")
    assert (again["score"], again["half"]) == (pytest.approx(expected.score), pytest.approx(expected.interval))


def test_listed_tasks_are_those_that_are_drawn_and_another_number_of_ways_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BUILD.replace("backbone()", "backbone(width=4)"))
    maml = read_entry(tmp_path / "mine.py")
    settings = [Setting(1, 2, 20, "", 5), Setting(1, 2, 20, "", 3)]
    pictures = replace(BY_NAME["glyphs"], input_shape=(1, 16, 16), source=NoisyPictures, settings=settings)
    folder = folder_of(tmp_path, maml, pictures, 0, 1)
    measure(maml, pictures, folder, 0, 1, "cpu")
    five, three = measured(folder)["tests"].values()
    drawn = pictures.data(settings[0], NoisyPictures())
    (expected,) = lm.evaluate(lm.load(folder / "0"), drawn, accelerator="cpu")
    assert five["score"] == pytest.approx(expected.score)
    assert five["episodes"] == hashlib.sha256((folder / "tasks_5-way_1-shot.csv").read_bytes()).hexdigest()
    assert three["problem"].startswith("ways: this MAML has a head for 5 ways")


def test_data_that_are_not_there_are_a_reason(maml: Entry, tmp_path: Path) -> None:
    def damaged() -> lm.sources.RegressionTable:
        return lm.sources.RegressionTable(tmp_path / "none.csv", targets="y", task_column="task")

    domain = replace(TINY, source=damaged)
    measure(maml, domain, tmp_path / "run", 2, 1, "cpu")
    for line in results_of(tmp_path / "run", maml, domain, 2, 1):
        assert re.match("data not at hand: .*none.csv", line.problem)


@pytest.mark.slow
def test_the_command_runs_what_it_can_and_names_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_META_DATA", str(tmp_path))  # without a table
    (tmp_path / "wrong.py").write_text(f"{BUILD}def training(domain):\n    return {{'meta_batch_size': 'many'}}\n")
    options = [str(tmp_path / "wrong.py"), str(ROOT / "scripts" / "entries" / "nearest_mean.py")]
    options += ["--only", "sinusoid", "landmine", "--device", "cpu", "--runs", str(tmp_path / "results")]
    assert domains.main(options) == 1
    said = capsys.readouterr().out
    assert "wrong on Sine waves, 5 examples: not run: failed: meta_batch_size" in said
    shown = (tmp_path / "results" / "domains.html").read_text()
    assert "needs tables/landmine.csv in LIGHTNING_META_DATA" in shown
    assert re.search(
        r"<td>Sine waves, 5 examples</td><td>MSE ↓</td><td></td><td>not run</td><td>\d+\.\d+ ± \d+\.\d+</td>", shown
    )
    assert domains.main([*options[1:]]) == 0  # the failed method is left out, and nothing is left to do
    assert "0 steps" not in capsys.readouterr().out
    assert (tmp_path / "results" / "domains.html").is_file()


# The page.


def result_of(method: str = "mine", **options: str) -> Result:
    about = {"metric": "accuracy", "score": "61.26", "half_width": "0.8", "steps": "30", "planned": "2000", "seed": "1"}
    about |= {"train_seconds": "90", "test_seconds": "4", "episodes": BY_NAME["glyphs"].settings[0].sha256}
    return Result(method, "glyphs", "5-way 1-shot", "600", **{**about, **options})


def test_the_page_shows_scores_conditions_and_reasons() -> None:
    lines = [result_of(), result_of("other", score="", episodes="", problem="needs <files>")]
    shown = {table.title: table.rows for table in tables(lines)}
    assert shown["Scores"] == [["Glyphs, 5-way 1-shot", "accuracy ↑", "20 %", "61.3 ± 0.8 %", "not run"]]
    assert shown["Training and test"][0][2:6] == ["30 (shortened, of 2,000)", "", "90 s", "4 s"]
    assert shown["Not run"] == [["Glyphs, 5-way 1-shot", "other", "needs <files>"]]
    assert "not the tasks" not in shown["Tasks"][0][3]
    html = page(lines, "a remark")
    assert "needs &lt;files&gt;" in html
    assert "<script" not in html
    assert "http" not in html


def test_other_tasks_are_said_to_be_others() -> None:
    (shown,) = (table.rows for table in tables([result_of(episodes="0123")]) if table.title == "Tasks")
    assert shown[0][3].startswith("0123 (not the tasks of the benchmark, fbb73358")


def test_new_results_take_the_place_of_old_ones_unless_they_have_no_score() -> None:
    old, new, none = result_of(score="50"), result_of(score="60"), result_of(score="", problem="the time was over")
    assert merged([old], [new]) == [new]
    assert merged([old], [none]) == [old]
    assert merged([none], [new, result_of("another")]) == [result_of("another"), new]


def test_the_published_page_is_what_its_results_make() -> None:
    made = with_parts(domains.PAGE, {"domains": domains.published()})
    assert made == domains.PAGE.read_text(), "run `python scripts/domains.py METHOD.py --publish`"


def test_the_method_on_the_page_is_the_shipped_file() -> None:
    (shown,) = re.findall(r"^```python\n(.*?)^```$", domains.PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert shown == (ROOT / "scripts" / "entries" / "nearest_mean.py").read_text()


def test_the_gallery_is_what_docstrings_and_results_make() -> None:
    assert gallery() == GALLERY.read_text(), "run `python scripts/make_tables.py`"
    of = figures()
    assert "96.03 ± 0.46 %" in {figure.measured for figure in of["protonet_glyphs"]}
    assert len(of["protonet_omniglot"]) == 4
    assert "0.947 ± 0.025" in {figure.measured for figure in of["Conditioned"]}


def test_every_configuration_of_the_results_has_a_row_or_is_listed_without_one() -> None:
    text = (ROOT / "docs" / "reproduction.md").read_text().partition("## Figures that do not come from here")[2]
    rows = {row.config for table in TABLES for row in read_rows(table)}
    configs = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    shown = {name for name in figures() if name in configs}
    assert len(shown) > 20
    assert not [name for name in shown - rows if name not in text and not name.startswith("ladder_")]
