"""Configurations with anything wrong in them: a run, or one line that names the mistake; never a traceback."""

from __future__ import annotations

import contextlib
import copy
import io
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lightning_meta.cli import main
from tests.robustness.fuzzing import SECONDS, repeated, short
from tests.waiting import TooSlow, computing_at_most

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
CONTENT = {path.stem: yaml.safe_load(path.read_text()) for path in CONFIGS if not path.stem.startswith("ladder_")}
QUICK = [
    *("--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.logger=false"),
    *("--trainer.enable_progress_bar=false", "--trainer.callbacks=null", "--trainer.strategy=auto"),
    *("--trainer.num_nodes=1", "--trainer.plugins=null", "--trainer.profiler=null", "--trainer.limit_val_batches=1"),
]

# Values of every kind that YAML knows, and some that programs like to trip over.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 7, 10**9, 2**63, -(2**70), 0.0, 0.5, -3.5, 1e308, float("nan"), float("inf")]),
    st.sampled_from(
        ["", " ", "x", "1e-4", "null", "true", "../..", "~", "%", "{", "[1, 2", "a.b.c", "torch.nn.Linear"]
    ),
    st.sampled_from(
        ["ProtoNet", "MAML", "Conv4", "Glyphs", "Sinusoid", "torch.optim.SGD", "builtins.int", "os.getcwd"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.integers(-100, 100),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc._-", max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["class_path", "init_args", "model", "data", "trainer", "dict_kwargs", "config", "ways", "lr", ""]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every entry of nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def configurations(draw: st.DrawFn) -> Any:
    """A shipped configuration after one to three changes."""
    config = copy.deepcopy(CONTENT[draw(st.sampled_from(sorted(CONTENT)))])
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(config))
        if not found:
            break
        *way, last = draw(st.sampled_from(found))
        holder = config
        for key in way:
            holder = holder[key]
        change = draw(st.sampled_from(["drop", "replace", "add", "rename", "wrap", "copy"]))
        if change == "drop":
            del holder[last]
        elif change == "replace":
            holder[last] = draw(VALUES)
        elif change == "wrap":
            holder[last] = draw(st.sampled_from([[holder[last]], {"class_path": holder[last]}, {"a": holder[last]}]))
        elif change == "copy":
            holder[last] = copy.deepcopy(draw(st.sampled_from([CONTENT, *CONTENT.values(), config])))
        elif isinstance(holder, dict):
            key = draw(KEYS | st.text("abcdef_", min_size=1, max_size=8) | st.integers(0, 3) | st.none())
            holder[key] = holder.pop(last) if change == "rename" else draw(VALUES)
    return config


PATIENCE = 10.0  # seconds of computing; what waits instead is ended by pytest's own limit
MEMORY = 12 * 2**30  # bytes of addresses; a width of a billion would take the machine down

counts: Counter[str] = Counter()


def outcome(text: str) -> str:
    """Fit with a configuration of this text; how it ended."""
    folder = Path("fuzz")
    folder.mkdir(exist_ok=True)
    file = folder / "config.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    before = set(Path().rglob("*"))
    said, shown = io.StringIO(), io.StringIO()
    try:
        with computing_at_most(PATIENCE), contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
            status = main(["fit", "--config", str(file), *QUICK])
    except TooSlow:  # a billion inner steps are a wish like any other
        return "slow"
    except RuntimeError as error:
        if isinstance(error.__context__, TooSlow):  # it came while torch was leaving a context
            return "slow"
        raise
    assert status in (0, 1, 2), status
    errors = [line for line in said.getvalue().splitlines() if line.startswith("lightning-meta: error: ")]
    assert len(errors) == (status != 0), said.getvalue()
    if errors:
        assert said.getvalue().endswith(errors[0] + "\n"), said.getvalue()
        assert len(errors[0]) > len("lightning-meta: error: ") + 5
    assert set(Path().rglob("*")) == before
    return {0: "ran", 1: "not finite", 2: "refused"}[status]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIGHTNING_META_DATA", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing is to be downloaded here
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@short
@given(configurations())
def changed(drawn: Any) -> None:
    counts[outcome(yaml.safe_dump(drawn, allow_unicode=True))] += 1


@short
@given(st.sampled_from(CONFIGS), st.data())
def torn(path: Path, data: st.DataObject) -> None:
    text = path.read_text()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = min(len(text), start + data.draw(st.integers(0, 20)))
        text = text[:start] + data.draw(st.text(max_size=8)) + text[stop:]
    counts[outcome(text)] += 1


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.filterwarnings("ignore")
def test_a_changed_configuration_runs_or_is_refused_in_one_line() -> None:
    counts.clear()
    repeated(changed, counts)
    assert counts["refused"] > 10


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.filterwarnings("ignore")
def test_torn_text_is_refused_in_one_line() -> None:
    counts.clear()
    repeated(torn, counts)
    assert [path.name for path in Path().iterdir()] == ["fuzz"]
