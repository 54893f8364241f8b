"""The tables of published figures: which runs fit into the time, what is run once, what it adds up to."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reproduce
import yaml
from filelock import FileLock, Timeout
from reproducing import running
from reproducing.claim import Claim
from reproducing.outcomes import NOT_RUN, Outcome, outcomes, verdict
from reproducing.page import markdown, with_parts
from reproducing.planning import START_UP, Job, jobs_of, plan, text_of
from reproducing.records import Record, collect, merged, read_records, write_records
from reproducing.rows import TABLES, Figure, Row, read_rows
from reproducing.storing import Stored
from scipy import stats

from lightning_meta.cli import main
from lightning_meta.cli.test import make_parser
from lightning_meta.errors import UserError
from tests.waiting import LIMIT, wait_for

ROWS = [row for table in TABLES for row in read_rows(table)]
PUBLISHED = Figure("5-way 1-shot", "test/accuracy", "some tasks", published=60.0, source="A paper")


def row_of(name: str = "row", hours: float = 1.0, **options: Any) -> Row:
    cost: Any = {"cpu": (hours, "estimated"), "gpu": (hours / 10, "measured")}
    return Row("few_shot", name, 1, "protonet_glyphs", cost, **{"figures": (PUBLISHED,), **options})


def record_of(value: float, seed: int = 1, row: Row | None = None, **options: str) -> Record:
    row = row or row_of()
    known = dict.fromkeys(Record.__dataclass_fields__, "") | {"row": row.name, "version": row.version}
    known |= {"figure": row.figures[0].name, "seed": str(seed), "value": str(value), "hours": "0.5"}
    return Record(**{**known, **options})


# The rows.


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table}-{row.name}")
def test_a_row_has_a_configuration_and_every_published_figure_a_source(row: Row) -> None:
    assert row.file.is_file()
    assert row.figures
    assert row.budget[0] >= 1 or row.config.startswith("pretrained_")
    assert all(figure.source and figure.protocol for figure in row.figures if figure.published is not None)


def test_names_and_priorities_of_a_table_differ() -> None:
    for table in TABLES:
        rows = read_rows(table)
        assert len({row.priority for row in rows}) == len({row.name for row in rows}) == len(rows)


OFTEN = ("protonet_omniglot", "conditioned_landmine", "linear_enb")


@pytest.mark.parametrize(
    "row", [pytest.param(r, marks=() if r.name in OFTEN else pytest.mark.slow, id=f"{r.table}-{r.name}") for r in ROWS]
)
def test_the_options_of_a_row_are_accepted(
    row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_META_DATA", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["fit", *row.arguments(7), "--print_config"])
    assert not ended.value.code
    parsed = yaml.safe_load(capsys.readouterr().out)
    assert parsed["seed_everything"] == 7
    assert "{data}" not in str(parsed)
    tests = [figure.test for figure in row.figures]
    known = {option for action in make_parser()._actions for option in action.option_strings}
    known |= {f"--data.{name}" for name in parsed["data"]["init_args"]}
    assert not [option for test in tests for option in test if option.partition("=")[0] not in known]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"figures": [{"name": "a", "metric": "m", "protocol": "p", "published": 5.0}]}, "5.0 has no source"),
        ({"cost": {"cpu": "1 guessed", "gpu": "1 measured"}}, "cost: expected hours.*got 1 guessed"),
        ({"cost": {"cpu": "1 measured"}}, "cost: expected cpu and gpu, got cpu"),
        ({"figures": []}, "expected one figure or more"),
        ({"priorty": 1}, "unknown key priorty"),
    ],
)
def test_a_mistake_in_a_row_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.yaml"
    whole = {"priority": 1, "config": "protonet_glyphs", "cost": {"cpu": "1 measured", "gpu": "0.1 estimated"}}
    file.write_text(
        yaml.safe_dump({"row": {**whole, "figures": [{"name": "a", "metric": "m", "protocol": "p"}], **change}})
    )
    with pytest.raises(UserError, match=f"^rows.yaml, row.*{message}"):
        read_rows("few_shot", file=file)


def test_a_row_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["--table", "few_shot", "--only", "nothing", "--plan"]) == 2
    assert "--only: the table few_shot has no row 'nothing'" in capsys.readouterr().err


def test_the_version_changes_with_what_is_trained() -> None:
    row = row_of()
    assert row.version == row_of("another", hours=3).version
    assert row.version != replace(row, options=("--trainer.max_steps=5",)).version
    assert row.version != replace(row, config="r2d2_glyphs").version


# What fits into the time.


def jobs(*costs: tuple[str, float]) -> list[Job]:
    return jobs_of([row_of(name, hours) for name, hours in costs], 3, "cpu", lambda row, seed: 0.0, start_up=0.0)


def chosen(jobs: list[Job], hours: float) -> list[tuple[str, int]]:
    return [(job.row.name, job.seed) for job in plan(jobs, hours).jobs]


def test_whole_rows_come_first_then_single_seeds_fill_what_remains() -> None:
    known = jobs(("long", 2.0), ("short", 1.0), ("tiny", 0.1))
    assert chosen(known, 100) == [(name, seed) for name in ("long", "short", "tiny") for seed in (1, 2, 3)]
    assert chosen(known, 3.4) == [*(("short", s) for s in (1, 2, 3)), *(("tiny", s) for s in (1, 2, 3))]
    assert chosen(known, 2.5) == [*(("tiny", s) for s in (1, 2, 3)), ("long", 1)]
    assert chosen(known, 0.05) == []
    assert plan(known, 2.5).hours == pytest.approx(2.3)
    assert plan(known, 2.5).left_out["short, seed 3"] == "a seed takes 1.00 h, and 12 min remain"


def test_what_is_finished_costs_nothing_and_what_is_begun_the_rest() -> None:
    done = {1: 1.0, 2: 0.75, 3: 0.0}
    left = jobs_of([row_of(hours=2.0)], 3, "cpu", lambda row, seed: done[seed], start_up=0.0)
    assert [(job.seed, job.hours, job.begun) for job in left] == [(2, 0.5, True), (3, 2.0, False)]
    left = jobs_of([row_of(hours=2.0)], 3, "cpu", lambda row, seed: done[seed], {"row": 4.0}, start_up=0.0)
    assert [(job.hours, job.basis) for job in left] == [(1.0, "measured"), (4.0, "measured")]


def test_each_process_has_to_start() -> None:
    further = (PUBLISHED, *(replace(PUBLISHED, name=name, test=(f"--data.test_shots={name}",)) for name in "35"))
    done, three = {1: 0.75, 2: 0.0}, row_of(hours=2.0, figures=further)
    left = jobs_of([row_of(hours=0.001), three], 2, "cpu", lambda row, seed: done[seed], start_up=0.01)
    assert [job.hours for job in left] == pytest.approx([0.01025, 0.011, 0.53, 2.03])
    left = jobs_of([three], 2, "cpu", lambda row, seed: done[seed], {"row": 4.03}, 0.01)  # which includes them
    assert [job.hours for job in left] == pytest.approx([1.03, 4.03])
    (short,) = jobs_of([row_of(hours=0.001)], 1, "cpu", lambda row, seed: 0.0)
    assert short.hours > 0.003


def test_a_row_whose_data_is_missing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_META_DATA", str(tmp_path))
    row = row_of(needs=("tables/mine.csv",))
    missing = plan(jobs_of([row], 1, "cpu", lambda row, seed: 0.0))
    assert not missing.jobs
    assert missing.left_out == {"row": "needs tables/mine.csv in LIGHTNING_META_DATA"}
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "mine.csv").touch()
    assert plan(jobs_of([row], 1, "cpu", lambda row, seed: 0.0)).jobs


def test_a_plan_says_what_is_run_and_why_the_rest_is_not() -> None:
    text = text_of(plan(jobs(("long", 2.0), ("tiny", 0.1)), 2.5), "cpu", 2.5)
    assert text.startswith("Plan of 2.5 hours on a CPU: 2.30 h in 4 runs.\nThe start and the end of each process count")
    assert "| `tiny` | 1, 2, 3 | 1,000 steps | 18 min | estimated | 5-way 1-shot 60.0 |\n| `long` | 1 |" in text
    assert text.endswith("- `long`, seeds 2, 3: a seed takes 2.00 h, and 12 min remain")


def test_the_plan_of_another_machine_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--table", "few_shot", "--device", "gpu", "--hours", "1", "--runs", str(tmp_path / "results")]
    assert reproduce.main([*options, "--plan"]) == 0
    assert capsys.readouterr().out.startswith("Plan of 1 hour on a GPU")
    assert not (tmp_path / "results").exists()


# What it adds up to.


@pytest.mark.parametrize(
    ("mean", "half_width", "options", "expected"),
    [
        (60.0, 0.0, {}, "within"),
        (59.0, 1.0, {}, "within"),  # they touch
        (59.0, 0.9, {}, "below"),
        (61.0, 0.9, {}, "above"),
        (58.0, 0.9, {"half_width": 1.5}, "within"),
        (57.0, 0.9, {"half_width": 1.5}, "below"),
        (62.5, 0.9, {"half_width": 1.5}, "above"),
        (61.0, 0.9, {"better": "lower"}, "below"),
        (59.0, 0.9, {"better": "lower"}, "above"),
        (59.5, 0.9, {"better": "lower"}, "within"),
        (math.nan, 0.9, {}, "below (not finite)"),
    ],
)
def test_a_verdict(mean: float, half_width: float, options: dict[str, Any], expected: str) -> None:
    assert verdict(mean, half_width, replace(PUBLISHED, **options)) == expected


def outcome_of(*records: Record, **options: Any) -> Outcome:
    row = row_of(**options)
    return Outcome(row, row.figures[0], records)


def test_the_interval_is_over_seeds_and_nothing_is_reached_with_fewer_than_three() -> None:
    values = [59.0, 60.5, 61.0]
    three = outcome_of(*(record_of(value, seed) for seed, value in enumerate(values, 1)))
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    assert (three.mean - three.half_width, three.mean + three.half_width) == pytest.approx((low, high))
    assert three.verdict == "within"
    one = outcome_of(record_of(60.0, over_tasks="0.4"))
    assert (one.half_width, one.interval, one.verdict) == (0.4, "test tasks", "not judged (1 of 3 seeds)")
    assert outcome_of(*three.records[:2]).verdict == "not judged (2 of 3 seeds)"
    assert outcome_of().verdict == NOT_RUN
    other = replace(three.records[2], revision="0123")
    assert outcome_of(*three.records[:2], other).verdict == "within (seeds of 2 commits)"


def test_what_cannot_be_compared_is_not_judged() -> None:
    records = [record_of(value, seed) for seed, value in enumerate((60.0, 60.5, 61.0), 1)]
    assert outcome_of(*records, comparable=False).verdict == "not judged (another protocol)"
    assert outcome_of(*records, shortened="9 of 99 steps").verdict == "not judged (shortened: 9 of 99 steps)"
    other = [*records[:2], replace(records[2], data="another")]
    assert outcome_of(*other).verdict == "not judged (seeds differ in their data)"
    silent = (replace(PUBLISHED, published=None),)
    assert outcome_of(*records, figures=silent).verdict == "nothing published"
    assert outcome_of(*records[:2], replace(records[2], value="")).verdict == "below (not finite)"


FOUND: dict[str, Any] = {
    "test/accuracy": 0.61,
    "test/accuracy_ci95": 0.004,
    "test/tasks": 600.0,
    "wall_time_s": 36.0,
    "seed": 1,
}
FOUND |= {"versions": {"python": "3.11", "torch": "2.13", "lightning_meta": "0.1"}, "git_revision": "abcdef012"}
FOUND |= {"data_fingerprint": "1234", "device": "cpu"}


def stored_run(folder: Path, row: Row, seed: int = 1, **changes: Any) -> Stored:
    stored = Stored(folder, row, seed)
    (stored.folder / "0").mkdir(parents=True)
    (stored.folder / "0" / "results.json").write_text(json.dumps({**FOUND, **changes}))
    stored.note("a machine")
    return stored


def test_what_runs_left_is_collected(tmp_path: Path) -> None:
    of_test = replace(PUBLISHED, name="5-way 5-shot", test=("--shots=5",))
    row = row_of(figures=(PUBLISHED, of_test))
    stored = stored_run(tmp_path, row)
    assert stored.trained
    assert not stored.finished  # its test is missing
    (first,) = collect(tmp_path, [row])
    assert (first.value, first.over_tasks, first.tasks, first.hours) == ("61", "0.4", "600", "0.0100")
    assert (first.machine, first.torch, first.revision, first.data) == ("a machine", "2.13", "abcdef012", "1234")
    other, test = (stored.folder / "0" / "tests" / n for n in "01")
    for directory, accuracy in ((other, 0.1), (test, 0.7)):
        directory.mkdir(parents=True)
        (directory / "results.json").write_text(json.dumps({**FOUND, "test/accuracy": accuracy}))
    stored.note_test(test, of_test)  # the other is the user's
    assert stored.finished
    assert [record.value for record in collect(tmp_path, [row])] == ["61", "70"]
    assert not collect(tmp_path, [replace(row, options=("--trainer.max_steps=5",))])  # another version
    stored_run(tmp_path, row, 2, **{"test/accuracy": None})
    assert collect(tmp_path, [row])[2].value == ""


def test_records_are_written_read_and_merged(tmp_path: Path) -> None:
    row = row_of()
    old = [record_of(1.0, 1), record_of(2.0, 2), replace(record_of(9.0, 1), version="00000000")]
    write_records(tmp_path / "records.csv", old)
    assert read_records(tmp_path / "records.csv") == old
    assert read_records(tmp_path / "none.csv") == []
    new = merged(read_records(tmp_path / "records.csv"), [record_of(3.0, 2), record_of(4.0, 10)], [row])
    assert [(record.seed, record.value) for record in new] == [("1", "1.0"), ("2", "3.0"), ("10", "4.0")]


def test_the_tables_have_every_figure(tmp_path: Path) -> None:
    row = row_of(deviations="fewer steps")
    stored_run(tmp_path, row)
    missing = row_of("missing")
    reproduce.write("few_shot", [row, missing], tmp_path, tmp_path, command="python scripts/reproduce.py --hours 1")
    with (tmp_path / "few_shot.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["row"], line["verdict"]) for line in lines] == [
        ("row", "not judged (1 of 3 seeds)"),
        ("missing", "not run"),
    ]
    assert (lines[0]["measured"], lines[0]["published"], lines[0]["source"]) == ("61", "60.0", "A paper")
    text = (tmp_path / "few_shot.md").read_text()
    assert text.startswith("Made by `python scripts/reproduce.py --hours 1` from 1 measured figures; 1 were not run.")
    assert "| `row`, 5-way 1-shot | 61.00 ± 0.40 % (1 seed; interval over test tasks) | 60.0 % | not judged" in text
    assert "published in A paper. Deviations: fewer steps |" in text
    assert "| `missing`, 5-way 1-shot | 60.0 % | A paper | some tasks |" in text
    three = [record_of(60.0 + s, s, over_tasks="9") for s in (1, 2, 3)]
    assert "62.00 ± 2.48 % (3 seeds) | 60.0 % | within |" in markdown("a command", outcomes([row], three))


def test_the_pages_are_what_their_records_and_rows_make() -> None:
    for page, content in reproduce.parts().items():
        made = with_parts(page, content)
        assert made == page.read_text(), "run `python scripts/reproduce.py --table few_shot --publish`"


# Running.


def test_a_run_is_held_by_one_and_by_a_child_that_outlives_it(tmp_path: Path) -> None:
    with Claim(tmp_path / "run") as claim:
        assert claim.held
        with Claim(tmp_path / "run") as other:
            assert not other.held
        with pytest.raises(Timeout):  # one kind of lock in the whole project
            FileLock(tmp_path / "run/lock", blocking=False).acquire()
        child = subprocess.Popen(["sleep", "60"], pass_fds=(claim.descriptor,))
    try:
        with Claim(tmp_path / "run") as other:
            assert not other.held
    finally:
        child.kill()
        child.wait()
    with Claim(tmp_path / "run") as claim:
        assert claim.held


def test_a_folder_that_cannot_be_locked_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"--runs: .*lock cannot be locked \(File exists\); name a writable folder"):
        Claim(tmp_path / "run").__enter__()


TINY = {
    "tiny": {
        "priority": 1,
        "config": "protonet_glyphs",
        "cost": {"cpu": "0.001 estimated", "gpu": "0.001 estimated"},
        "options": [
            "--model.backbone.width=4",
            "--trainer.max_steps=400",
            "--data.meta_batches_per_epoch=200",
            "--data.ways=5",
            "--data.val_tasks=2",
            "--data.test_tasks=4",
        ],
        "figures": [
            {"name": "5-way", "metric": "test/accuracy", "protocol": "", "published": 1.0, "source": "A paper"},
            {"name": "3-way", "metric": "test/accuracy", "protocol": "", "test": ["--ways=3"]},
        ],
    }
}


@pytest.fixture
def tiny(tmp_path: Path) -> list[Row]:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return read_rows("few_shot", file=file)


@pytest.mark.slow
def test_a_row_is_stopped_resumed_tested_and_not_done_again(
    tiny: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "results"
    runner = reproduce.Reproduction(tiny, 1, runs, "cpu")
    stored = Stored(runs, tiny[0], 1)
    driver = "import reproduce, sys; from reproducing.rows import read_rows; from pathlib import Path\n"
    driver += f"rows = read_rows('few_shot', file=Path({str(tmp_path / 'tiny.yaml')!r}))\n"
    driver += f"reproduce.Reproduction(rows, 1, Path({str(runs)!r}), 'cpu').run(1.0)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", driver], env=environment, start_new_session=True)
    wait_for(lambda: stored.run is not None, process)
    assert runner.run(1.0) is False  # it is the other's
    assert "another process has it" in capsys.readouterr().out
    process.send_signal(signal.SIGKILL)
    process.wait(LIMIT)
    held = True
    while held:  # the training, which its runner's end does not stop
        with Claim(stored.folder) as claim:
            held = not claim.held
        time.sleep(0.1)
    runner = reproduce.Reproduction(tiny, 1, runs, "cpu")
    assert runner.run(1.0) is False
    assert "tiny, seed 1: done in" in capsys.readouterr().out
    assert stored.finished
    reproduce.write("few_shot", tiny, runs, runs)
    first, second = read_records(runs / "few_shot_seeds.csv")
    assert 0 <= float(first.value) <= 100
    assert first.machine == runner.machine != ""
    assert second.figure == "3-way"
    assert first.data
    before = (runs / "few_shot_seeds.csv").read_text()
    assert reproduce.Reproduction(tiny, 1, runs, "cpu").run(1.0) is False
    assert "begins" not in capsys.readouterr().out
    assert before == (runs / "few_shot_seeds.csv").read_text()


@pytest.mark.slow
def test_the_end_of_the_time_leaves_what_can_be_resumed(tiny: list[Row], tmp_path: Path) -> None:
    long = replace(tiny[0], options=(*tiny[0].options, "--trainer.max_steps=1000000"))
    stored = Stored(tmp_path, long, 1)

    class OnceTrained(float):
        """A deadline that has passed once a checkpoint contains training steps."""

        def __lt__(self, now: float) -> bool:
            return stored.share > 0

    begun: list[str] = []
    assert running.run(stored, "cpu", "a machine", OnceTrained(), lambda: begun.append("once")) == "out of time"
    assert begun == ["once"]
    assert not stored.trained
    assert 0 < stored.share < 1
    (job,) = reproduce.Reproduction([long], 1, tmp_path, "cpu").jobs
    assert job.begun
    assert 0 < job.hours - long.processes * START_UP < 0.001


@pytest.mark.slow
def test_a_row_that_fails_is_named_and_the_next_one_runs(
    tiny: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = replace(tiny[0], name="wrong", options=("--data.ways=5000",))
    short = replace(tiny[0], options=(*tiny[0].options, "--trainer.max_steps=2"))
    assert reproduce.Reproduction([wrong, short], 1, tmp_path, "cpu").run(1.0) is True
    said = capsys.readouterr().out
    assert "wrong, seed 1: failed: " in said
    assert "tiny, seed 1: done in" in said
