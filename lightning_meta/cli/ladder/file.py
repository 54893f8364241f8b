"""A ladder's file: methods on the same data with the same budget, each checked by the parser of `fit`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from reprlib import repr
from typing import Any

import yaml
from jsonargparse import ArgumentError

from lightning_meta.cli.config_text import check_yaml
from lightning_meta.cli.fit import MetaCLI, fit_options
from lightning_meta.cli.ladder.search import TUNED, Search, read_search
from lightning_meta.cli.messages import one_line
from lightning_meta.describing import fixed_options
from lightning_meta.errors import UserError
from lightning_meta.import_paths import import_class
from lightning_meta.reading import read_yaml
from lightning_meta.run.names import refuse_name
from lightning_meta.weightings import Aggregator, Equal, GradientWeighting

KEYS = ("seeds", "baseline", "shared", "model", "tune", "rungs")
OF_THE_LADDER = ("config", "seed_everything", "name", "runs", "ckpt_path")
FOLDERS = ("report", "configs", "logs", "trials", TUNED)


@dataclass(frozen=True)
class Ladder:
    """Methods to train on the same data with the same budget, each with the same seeds.

    Attributes:
        folder: `runs/<name>`.
        baseline: The rung that the others are compared with.
        seeds: One run of every rung for each.
        rungs: By name, the whole configuration of `fit`, which differs in `model` alone.
        search: What every rung searches before; None where nothing is.
        trials: By rung that searches, what makes the configurations of its trials, without weights of its losses.
        weights: By rung, where the weights of its sum come from: `TUNED`, or the rung that they are read off.
    """

    folder: Path
    baseline: str
    seeds: tuple[int, ...]
    rungs: Mapping[str, dict[str, Any]]
    search: Search | None = None
    trials: Mapping[str, Callable[[], Iterator[dict[str, Any]]]] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)


def read_ladder(
    file: str,
    folder: Path,
    seeds: Sequence[int] | None,
    rungs: Sequence[str] | None,
    options: Sequence[str],
    further: Mapping[str, dict[str, Any]] | None = None,
    trials: int | None = None,
) -> Ladder:
    """Read a ladder, and check the configuration of every rung.

    Args:
        file: The ladder's configuration.
        folder: Where its runs go.
        seeds: Instead of the file's.
        rungs: Those to train; by default all.
        options: Options of `fit` that hold for every rung.
        further: Rungs beside those of the file, which are trained whatever `rungs` says.
        trials: Of each rung that searches, instead of the file's.

    Raises:
        UserError: The file is not a ladder, or `fit` would refuse a rung.
    """
    content = _content(file)
    seeds = _checked_seeds(file, content.get("seeds") if seeds is None else seeds)
    shared, models = _mapping(file, content, "shared"), _mapping(file, content, "model")
    known = _mapping(file, content, "rungs")
    if odd := [k for k in shared if k == "model" or k in OF_THE_LADDER]:
        raise UserError(f"{file}, shared.{odd[0]}: a ladder sets this itself; remove it")
    if odd := [k for k in models if k != "init_args"]:
        raise UserError(f"{file}, model.{odd[0]}: only init_args stand here; the class_path is each rung's own")
    chosen = list(known) if rungs is None else list(dict.fromkeys(rungs))
    if missing := [r for r in chosen if r not in known]:
        raise UserError(f"--rungs: there is no rung {missing[0]!r} in {file}; it has {', '.join(known)}")
    if rungs is not None and not chosen:
        raise UserError(f"--rungs: name at least one of {', '.join(known)}")
    baseline = content.get("baseline", next(iter(known), None))
    for rung, model in (further or {}).items():
        if rung in known:
            raise UserError(f"{file}, rungs.{rung}: --groups adds a rung of this name; give that of the file another")
        known[rung] = model
        chosen.append(rung)
    if not isinstance(baseline, str) or baseline not in chosen:
        raise UserError(f"{file}, baseline: {baseline!r} is none of the rungs to train ({', '.join(chosen)})")
    search = read_search(f"{file}, tune", content["tune"], trials) if "tune" in content else None
    if search is None and trials is not None:
        raise UserError(f"--trials: {file} has no tune; nothing is searched")
    if search is not None and search.seed in seeds:
        raise UserError(
            f"{file}, tune.seed: {search.seed} is one of the ladder's seeds, whose run would repeat the trial that was "
            "chosen; give another"
        )
    weights = _weights(file, {rung: known[rung] for rung in chosen}, search)
    common, parsed = _mapping(file, models, "init_args"), {}
    given: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for rung in chosen:
        model = _model(file, rung, _of_source(known, rung, weights), common)
        config, of_rung = given[rung] = {**shared, "model": model}, _options_of(model["class_path"], options)
        parsed[rung] = _parsed(file, folder, rung, config, of_rung)
    if search is None:
        return Ladder(folder, baseline, seeds, parsed)
    _check_searched(file, parsed, weights)
    searched = [rung for rung in chosen if weights.get(rung, TUNED) == TUNED]
    of_trials = {
        rung: partial(_trials, file, folder / "trials", parsed[rung], *given[rung], search) for rung in searched
    }
    for rung in {parsed[rung]["model"]["class_path"]: rung for rung in reversed(searched)}.values():
        list(islice(of_trials[rung](), 2))  # a mistake in what is searched is seen in the first drawn trial
    return Ladder(folder, baseline, seeds, parsed, search, of_trials, weights)


def _weights(file: str, rungs: Mapping[str, Any], search: Search | None) -> dict[str, str]:
    """Where the weights of rungs come from that do not say them."""
    found = {rung: model["weights"] for rung, model in rungs.items() if isinstance(model, dict) and "weights" in model}
    for rung, source in found.items():
        where = f"{file}, rungs.{rung}.weights"
        if source != TUNED and len(rungs[rung]) > 1:
            raise UserError(f"{where}: the model is that of {source}; leave out what else stands here")
        if search is None:
            raise UserError(f"{where}: {file} has no tune, which says how many trials each rung has; add it")
        if source != TUNED and (not isinstance(source, str) or source not in rungs or source in found):
            others = [name for name in rungs if name not in found]
            raise UserError(
                f"{where}: expected {TUNED}, or the rung to read them off ({', '.join(others)}), got {source!r}"
            )
    return found


def _of_source(rungs: Mapping[str, Any], rung: str, weights: Mapping[str, str]) -> Any:
    """A rung as it stands in the file; one whose weights are read off another has the other's model."""
    source = weights.get(rung, TUNED)
    model = rungs[rung] if source == TUNED else rungs[source]
    args = model.get("init_args") if isinstance(model, dict) else None
    if source == TUNED or not isinstance(args, dict):
        return model
    return {**model, "init_args": {name: value for name, value in args.items() if name != "weighting"}}


def _check_searched(file: str, rungs: Mapping[str, dict[str, Any]], weights: Mapping[str, str]) -> None:
    """Refuse trials that cannot be compared, weights of a rung that takes none, and those that no rung logs."""
    for rung, config in rungs.items():
        if config["checkpoint"]["monitor"] is None:
            raise UserError(
                f"{file}, tune: set shared.checkpoint.monitor, the validation metric by which trials are compared"
            )
        if rung in weights and config["model"]["init_args"].get("weighting", "none") is not None:
            raise UserError(
                f"{file}, rungs.{rung}.weights: leave out model.weighting, and take a model with a weighting, such as "
                "lightning_meta.MultiHead"
            )
        source = weights.get(rung, TUNED)
        if source != TUNED:
            weighting = rungs[source]["model"]["init_args"].get("weighting")
            kind = Equal if weighting is None else import_class(weighting["class_path"])
            if issubclass(kind, Equal) or (issubclass(kind, Aggregator) and not issubclass(kind, GradientWeighting)):
                raise UserError(f"{file}, rungs.{rung}.weights: {source} logs no weights to read off ({kind.__name__})")


def _trials(
    file: str,
    folder: Path,
    parsed: Mapping[str, Any],
    config: dict[str, Any],
    options: Sequence[str],
    search: Search,
) -> Iterator[dict[str, Any]]:
    """The configurations of a rung's trials; of one that has none of the searched options, the first alone."""
    name = f"{parsed['name']}_trial_{{}}".format
    yield {**parsed, "name": name(0), "runs": str(folder)}
    for number in range(1, search.trials):
        settings = [f"--{option}={value}" for option, value in search.settings(number).items()]
        if taken := _options_of(config["model"]["class_path"], settings):
            yield _parsed(file, folder, name(number), config, [*options, *taken])


class _Parsed(MetaCLI):
    """The parser of `fit` alone: nothing is made, and no seed is set."""

    def _set_seed(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass


def _parsed(file: str, folder: Path, rung: str, config: dict[str, Any], options: Sequence[str]) -> dict[str, Any]:
    text = yaml.safe_dump(config, sort_keys=False)
    arguments = [f"--config={text}", *options, f"--name={rung}", f"--runs={folder}"]
    try:
        cli = _Parsed(arguments)
    except ArgumentError as error:
        raise UserError(f"{file}, rung {rung}: {one_line(error, fit_options())}") from error
    parsed = yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False))
    return {k: v for k, v in parsed.items() if k not in ("config", "ckpt_path", "allow_changes")}


def _content(file: str) -> dict[str, Any]:
    if Path(file).exists():
        check_yaml(Path(file))
    try:
        content = read_yaml(file)
    except UserError as error:
        raise UserError(f"--config: {error}") from error
    except OSError as error:
        raise UserError(f"--config: {file} cannot be read ({error.strerror})") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"--config: {file} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or "rungs" not in content:
        raise UserError(f"--config: {file} is no ladder: it needs rungs; a single method is trained by fit")
    if odd := [str(k) for k in content if k not in KEYS]:
        raise UserError(f"{file}: {odd[0]} is no part of a ladder; expected {', '.join(KEYS)}")
    return content


def _mapping(file: str, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{file}, {key}: expected names with values, got {repr(value)}")
    return value


def _checked_seeds(file: str, seeds: Any) -> tuple[int, ...]:
    whole = isinstance(seeds, list | tuple) and all(type(s) is int and 0 <= s < 2**32 for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{file}, seeds: expected different whole numbers from 0, such as [1, 2, 3], got {seeds!r}")
    return tuple(seeds)


def _model(file: str, rung: str, model: Any, common: Mapping[str, Any]) -> dict[str, Any]:
    if not re.fullmatch(r"[A-Za-z_][\w.-]*", rung) or rung in FOLDERS:
        raise UserError(f"{file}, rungs: {rung!r} cannot name a folder of runs; letters, digits, '_' and '-' can")
    refuse_name(f"{file}, rungs", rung)
    if not isinstance(model, dict) or "class_path" not in model:
        raise UserError(f"{file}, rungs.{rung}: expected class_path and init_args, got {model!r}")
    if odd := [k for k in model if k not in ("class_path", "init_args", "weights")]:
        raise UserError(
            f"{file}, rungs.{rung}.{odd[0]}: a rung sets its model alone; data, budget and selection rule are the same "
            "for all and stand under shared"
        )
    own = _mapping(file, {f"rungs.{rung}.init_args": model.get("init_args")}, f"rungs.{rung}.init_args")
    if twice := [k for k in own if k in common]:
        raise UserError(
            f"{file}, rungs.{rung}.init_args.{twice[0]}: model.init_args sets this for all rungs; "
            "keep it there, or give each rung its own"
        )
    fixed = _fixed(model["class_path"])
    taken = {name: value for name, value in common.items() if name not in fixed}
    return {"class_path": model["class_path"], "init_args": {**taken, **own}}


def _fixed(class_path: Any) -> frozenset[str]:
    """What a method sets itself, such as the backbone of `Linear`: what holds for all rungs does not hold for it."""
    try:
        return fixed_options(import_class(str(class_path)))
    except UserError:
        return frozenset()  # the parser says what is wrong with it


def _options_of(class_path: Any, options: Sequence[str]) -> list[str]:
    """The options of the command line without those that set what a method sets itself."""
    fixed, taken, skips = _fixed(class_path), [], False
    for option in options:
        name, equals, _ = option.partition("=")
        if option.startswith("--"):
            path = name.rstrip("+").removeprefix("--model.").removeprefix("init_args.")
            skips = name.startswith("--model.") and path.partition(".")[0] in fixed
        if not skips:
            taken.append(option)
        skips = skips and not equals  # then the value is the next argument
    return taken
