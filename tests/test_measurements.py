"""Figures that other commands print: what is run once, what is kept, and how it gets into the pages."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import reproduce
from reproducing import measurements
from reproducing.measurements import Measurement, Measuring, read_measurements
from reproducing.rows import ROOT

from lightning_meta.errors import UserError

ROWS = read_measurements()
WRITE = "import sys, pathlib; pathlib.Path(sys.argv[1], 'made').write_text('7'); print('not kept')"
READ = (
    "import sys, pathlib; print('note', file=sys.stderr); "
    "print(sys.argv[1]); print(pathlib.Path(sys.argv[1], 'made').read_text())"
)
TWO = Measurement("two", 1, "a number", "docs/results.md", (("-c", WRITE, "{1}"), ("-c", READ, "{1}")), 0.01)


def measuring(folder: Path, *rows: Measurement) -> Measuring:
    return Measuring(rows, folder, "a machine")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_has_commands_that_exist_and_a_place_on_its_page(row: Measurement) -> None:
    for command in row.commands:
        if command[0] == "-m":
            assert importlib.util.find_spec(command[1]) is not None
        else:
            assert (ROOT / command[0]).is_file()
    text = (ROOT / row.page).read_text()
    assert text.count(f"<!-- {row.name} -->") == text.count(f"<!-- /{row.name} -->") == 1


def test_the_output_of_the_last_command_is_kept_and_nothing_is_run_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = measuring(tmp_path, TWO)
    assert not runs.run(1.0)
    ((about, output, pictures),) = runs.collect().values()
    assert output == "FOLDER1\n7"
    assert pictures == ()
    assert (about.row, about.machine, about.data) == ("two", "a machine", "")
    assert all((about.torch, about.python, about.lightning_meta))
    assert 0 <= float(about.hours) < 0.1
    assert "note" in (runs.folder(TWO) / "log.txt").read_text()
    stamp = runs.output(TWO).stat().st_mtime_ns
    capsys.readouterr()
    assert not runs.run(1.0)
    assert runs.output(TWO).stat().st_mtime_ns == stamp
    assert "two" not in capsys.readouterr().out
    other = replace(TWO, commands=(TWO.commands[0], ("-c", f"{READ}; print(8)", "{1}")))  # runs in a folder of its own
    assert not measuring(tmp_path, other).run(1.0)
    assert measuring(tmp_path, other).collect()["two"].output == "FOLDER1\n7\n8"


def test_a_failed_command_is_named_and_the_commands_before_it_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = "import sys, pathlib; sys.exit(0 if pathlib.Path('{file}').exists() else 'there is no file')"
    second = ("-c", fails.replace("{file}", str(tmp_path / "file")))
    once = ("-c", f"import pathlib; pathlib.Path(r'{tmp_path / 'once'}').touch(exist_ok=False)")
    row = replace(TWO, commands=(once, second))
    assert measuring(tmp_path, row, TWO).run(1.0)
    out = capsys.readouterr().out
    assert "failed: there is no file (see " in out
    assert measuring(tmp_path, row).collect() == {}
    (tmp_path / "file").touch()
    assert not measuring(tmp_path, row).run(1.0)  # the first command would fail now
    assert list(measuring(tmp_path, row).collect()) == ["two"]


def test_what_takes_too_long_or_lacks_data_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_META_DATA", str(tmp_path))
    lacking, long = replace(TWO, name="lacking", needs=("a.csv",)), replace(TWO, name="long", hours=2.0)
    runs = measuring(tmp_path, lacking, long, TWO)
    text = runs.text(1.0)
    assert "- `lacking`: needs a.csv in LIGHTNING_META_DATA" in text
    assert "- `long`: takes 2.00 h, and 1.00 h remain" in text
    assert "| `two` | 36 s | a number | docs/results.md |" in text
    assert not runs.run(1.0)
    assert list(runs.collect()) == ["two"]
    assert "left out: long: takes 2.00 h" in capsys.readouterr().out
    slow = replace(TWO, commands=(("-c", "import time; time.sleep(600)"),), hours=1e-12)
    assert not measuring(tmp_path, slow).run(5e-4)
    assert "two: out of time" in capsys.readouterr().out


def test_published_measurements_replace_their_part_of_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = replace(TWO, name="table", commands=(("-c", "print('| a |\\n| --- |\\n| 1 |')"),))
    monkeypatch.setattr(measurements, "read_measurements", lambda: [TWO, table, replace(TWO, name="missing")])
    runs = measuring(tmp_path, TWO, table)
    assert not runs.run(1.0)
    measurements.publish(tmp_path, runs.collect())
    page = {"two": "```\nFOLDER1\n7\n```", "table": "| a |\n| --- |\n| 1 |"}
    assert measurements.pages(tmp_path) == {ROOT / "docs/results.md": page}
    text = measurements.markdown(tmp_path)
    assert "| `two` | a number | `python -c" in text
    assert text.endswith("Not run: `missing`.")
    measurements.publish(tmp_path, {})  # keeps what was published
    assert measurements.pages(tmp_path) == {ROOT / "docs/results.md": page}
    changed = replace(table, commands=(("-c", "print(2)"),))
    monkeypatch.setattr(measurements, "read_measurements", lambda: [TWO, changed])
    assert measurements.pages(tmp_path) == {ROOT / "docs/results.md": {"two": page["two"]}}
    assert measurements.markdown(tmp_path).endswith("Not run: `table`.")  # rather than its output with other commands
    measurements.publish(tmp_path, {})
    assert "table" not in (tmp_path / "measurements.csv").read_text()


def test_pictures_are_published_with_the_tables_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_META_DATA", str(tmp_path))
    (tmp_path / "a.csv").write_text("3")
    draw = "import sys, pathlib; pathlib.Path(sys.argv[1], 'curves.png').write_bytes(b'drawn')"
    tell = "import sys, pathlib; print('Told.\\n\\n| a |\\n| --- |\\n|', pathlib.Path(sys.argv[1]).read_text(), '|')"
    commands = (("-c", draw, "{1}"), ("-c", tell, "{data}/a.csv"))
    row = replace(TWO, commands=commands, needs=("a.csv",), pictures=("1/curves.png",))
    assert row.shown(1).endswith(" DATA/a.csv")
    monkeypatch.setattr(measurements, "read_measurements", lambda: [row])
    runs = measuring(tmp_path, row)
    assert not runs.run(1.0)
    monkeypatch.setattr(measurements, "ROOT", tmp_path)
    folder = tmp_path / "docs" / "reproduction"
    folder.mkdir(parents=True)
    measurements.publish(folder, runs.collect())
    (page,) = measurements.pages(folder).values()
    table, _, picture = page["two"].rpartition("\n\n")
    assert table == "Told.\n\n| a |\n| --- |\n| 3 |"
    assert picture == "![a number](reproduction/measurements/curves.png)"
    assert (tmp_path / "docs" / "reproduction/measurements/curves.png").read_bytes() == b"drawn"


def test_mistakes_in_rows_are_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.yaml"
    file.write_text("row: {priority: 1, about: x, page: README.md, commands: []}")
    with pytest.raises(UserError, match="row: expected about, commands, hours"):
        read_measurements(file=file)
    file.write_text("row: {priority: 1, about: x, page: README.md, commands: [], hours: 1.0}")
    with pytest.raises(UserError, match="at least one command"):
        read_measurements(file=file)
    for text in ("row: [a, {b}", "row: 3", "- row", ""):
        file.write_text(text)
        with pytest.raises(UserError, match=r"^rows.yaml: \S"):
            read_measurements(file=file)
    with pytest.raises(UserError, match=r"^none.yaml: "):
        read_measurements(file=tmp_path / "none.yaml")
    with pytest.raises(UserError, match="--only: the table measurements has no row 'x'"):
        read_measurements(["x"])


def test_the_plan_is_printed_by_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["--table", "measurements", "--plan", "--hours", "0.001"]) == 0
    assert "in 0 measurements" in capsys.readouterr().out
    for option in (["--seeds", "3"], ["--device", "gpu"]):
        assert reproduce.main(["--table", "measurements", "--plan", *option]) == 2
        assert "leave both out" in capsys.readouterr().err
    assert reproduce.main(["--table", "measurements", "--only", "nothing"]) == 2
    assert "has no row 'nothing'" in capsys.readouterr().err


def test_the_extract_in_the_readme_is_of_the_published_ladder() -> None:
    text = (ROOT / "README.md").read_text()
    shown = text.partition("multi_head against independent")[2].partition("```")[0].splitlines()
    rows = [line.split() for line in shown if " % " in line and "interval" not in line]
    report = (reproduce.PUBLISHED / "measurements/ladder_glyphs.txt").read_text()
    printed = report.partition("conditioned against")[0].splitlines()
    assert len(rows) == 7
    for row in rows:
        (line,) = (line.split() for line in printed if line.split()[:1] == row[:1])
        assert row == line[: len(row)]
    statement = " ".join(" ".join(shown).partition("For these")[2].split())
    assert statement.rstrip(".") in " ".join(report.split())
