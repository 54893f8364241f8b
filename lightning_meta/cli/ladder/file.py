"""Read the file of a ladder, and check the configuration of each rung with the parser of `fit`."""

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

from lightning_meta.cli.config_text import read_config
from lightning_meta.cli.fit import ParsedOnly
from lightning_meta.cli.ladder.search import TUNED, Search, read_search
from lightning_meta.cli.shipped import as_given
from lightning_meta.describing import fixed_options
from lightning_meta.errors import UserError
from lightning_meta.import_paths import import_class
from lightning_meta.multitask import Grouped, Independent
from lightning_meta.run.directory import refuse_name
from lightning_meta.weightings import Aggregator, Equal, GradientWeighting

KEYS = ("seeds", "baseline", "shared", "model", "tune", "rungs")
OF_THE_LADDER = ("config", "seed_everything", "name", "runs", "ckpt_path")
FOLDERS = ("report", "configs", "logs", "trials", TUNED)


@dataclass(frozen=True)
class Ladder:
    """Methods to train on the same data with the same budget and seeds.

    Attributes:
        folder: Folder of the ladder, `runs/<name>`.
        baseline: The rung that the others are compared with.
        seeds: Seeds; each rung is trained once with each.
        rungs: Complete configurations of `fit` by rung, which differ only in `model`.
        search: The search that tunes every rung; None without tuning.
        trials: Generators of the trials' configurations by tuned rung, without loss weights.
        weights: Source of the loss weights by rung: `TUNED`, or the rung whose mean weights are used.
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
    extra_rungs: Mapping[str, dict[str, Any]] | None = None,
    trials: int | None = None,
) -> Ladder:
    """Read a ladder, and check the configuration of every rung.

    Args:
        file: Path of the ladder's file.
        folder: Folder for the runs.
        seeds: Seeds; by default those of the file.
        rungs: Names of the rungs to train; by default all.
        options: Options of `fit` for every rung.
        extra_rungs: Models of additional rungs by name, which are always trained.
        trials: Number of trials per tuned rung; by default that of the file.

    Raises:
        UserError: The file is not a ladder, or `fit` would refuse a rung.
    """
    content = _content(file)
    seeds = _checked_seeds(file, content.get("seeds") if seeds is None else seeds)
    shared, models = _mapping(file, content, "shared"), _mapping(file, content, "model")
    all_rungs = _mapping(file, content, "rungs")
    if odd := [k for k in shared if k == "model" or k in OF_THE_LADDER]:
        raise UserError(f"{file}, shared.{odd[0]}: a ladder sets this itself; remove it")
    if odd := [k for k in models if k != "init_args"]:
        raise UserError(f"{file}, model.{odd[0]}: only init_args are shared; give each rung its class_path")
    chosen = list(all_rungs) if rungs is None else list(dict.fromkeys(rungs))
    if missing := [r for r in chosen if r not in all_rungs]:
        raise UserError(f"--rungs: there is no rung {missing[0]!r} in {file}; it has {', '.join(all_rungs)}")
    if rungs is not None and not chosen:
        raise UserError(f"--rungs: name at least one of {', '.join(all_rungs)}")
    baseline = content.get("baseline", next(iter(all_rungs), None))
    for rung, model in (extra_rungs or {}).items():
        if rung in all_rungs:
            raise UserError(f"{file}, rungs.{rung}: --groups adds a rung of this name; rename the one in the file")
        all_rungs[rung] = model
        chosen.append(rung)
    if not isinstance(baseline, str) or baseline not in chosen:
        raise UserError(f"{file}, baseline: {baseline!r} is not one of the rungs to train ({', '.join(chosen)})")
    search = read_search(f"{file}, tune", content["tune"], trials) if "tune" in content else None
    if search is None and trials is not None:
        raise UserError(f"--trials: {file} has no section tune, so there are no trials")
    if search is not None and search.seed in seeds:
        raise UserError(
            f"{file}, tune.seed: {search.seed} is also a seed of the ladder, whose run would repeat the best trial; "
            "choose another"
        )
    weights = _weight_sources(file, {rung: all_rungs[rung] for rung in chosen}, search)
    common, parsed = _mapping(file, models, "init_args"), {}
    unparsed: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for rung in chosen:
        model = _model(file, rung, _model_in_file(all_rungs, rung, weights), common)
        config, own_options = unparsed[rung] = {**shared, "model": model}, _accepted(model["class_path"], options)
        parsed[rung] = _parsed(file, folder, rung, config, own_options)
    if search is None:
        return Ladder(folder, baseline, seeds, parsed)
    _check_tuning(file, parsed, weights)
    searched = [rung for rung in chosen if weights.get(rung, TUNED) == TUNED]
    generators = {
        rung: partial(_trials, file, folder / "trials", parsed[rung], *unparsed[rung], search) for rung in searched
    }
    # The first drawn trial of each class shows mistakes in the search space.
    for rung in {parsed[rung]["model"]["class_path"]: rung for rung in reversed(searched)}.values():
        list(islice(generators[rung](), 2))
    return Ladder(folder, baseline, seeds, parsed, search, generators, weights)


def _weight_sources(file: str, rungs: Mapping[str, Any], search: Search | None) -> dict[str, str]:
    """The source of the loss weights of each rung that has the key `weights`."""
    sources = {
        rung: model["weights"] for rung, model in rungs.items() if isinstance(model, dict) and "weights" in model
    }
    for rung, source in sources.items():
        where = f"{file}, rungs.{rung}.weights"
        if source != TUNED and len(rungs[rung]) > 1:
            raise UserError(f"{where}: the model is that of {source}; remove the other keys of {rung}")
        if search is None:
            raise UserError(f"{where}: {file} has no section tune with the number of trials; add it")
        if source != TUNED and (not isinstance(source, str) or source not in rungs or source in sources):
            others = [name for name in rungs if name not in sources]
            raise UserError(
                f"{where}: expected {TUNED}, or the rung whose mean weights are used ({', '.join(others)}), got "
                f"{source!r}"
            )
    return sources


def _model_in_file(rungs: Mapping[str, Any], rung: str, weights: Mapping[str, str]) -> Any:
    """The model of a rung; with the mean weights of another rung, the model of that rung without its weighting."""
    source = weights.get(rung, TUNED)
    model = rungs[rung] if source == TUNED else rungs[source]
    args = model.get("init_args") if isinstance(model, dict) else None
    if source == TUNED or not isinstance(args, dict):
        return model
    return {**model, "init_args": {name: value for name, value in args.items() if name != "weighting"}}


def _check_tuning(file: str, rungs: Mapping[str, dict[str, Any]], weights: Mapping[str, str]) -> None:
    """Check that trials can be compared, and that rungs with a source of weights take and log weights."""
    for rung, config in rungs.items():
        if config["checkpoint"]["monitor"] is None:
            raise UserError(
                f"{file}, tune: set shared.checkpoint.monitor, the validation metric that selects the best trial"
            )
        if rung in weights and config["model"]["init_args"].get("weighting", "none") is not None:
            raise UserError(
                f"{file}, rungs.{rung}.weights: leave out model.weighting, and use a model that has a weighting, such "
                "as lightning_meta.MultiHead"
            )
        if rung in weights and issubclass(import_class(config["model"]["class_path"]), Independent | Grouped):
            raise UserError(f"{file}, rungs.{rung}.weights: its model shares nothing, so losses cannot be weighted")
        source = weights.get(rung, TUNED)
        if source != TUNED:
            weighting = rungs[source]["model"]["init_args"].get("weighting")
            kind = Equal if weighting is None else import_class(weighting["class_path"])
            if issubclass(kind, Equal) or (issubclass(kind, Aggregator) and not issubclass(kind, GradientWeighting)):
                raise UserError(f"{file}, rungs.{rung}.weights: {source} logs no weights ({kind.__name__})")


def is_first_trial(name: str) -> bool:
    """Whether a name is that of a trial with the settings of the file."""
    return name.endswith("_trial_0")


def _trials(
    file: str,
    folder: Path,
    parsed: Mapping[str, Any],
    config: dict[str, Any],
    options: Sequence[str],
    search: Search,
) -> Iterator[dict[str, Any]]:
    """The configurations of a rung's trials; only the first if the rung has none of the tuned options."""
    name = f"{parsed['name']}_trial_{{}}".format
    yield {**parsed, "name": name(0), "runs": str(folder)}
    for number in range(1, search.trials):
        settings = [f"--{option}={value}" for option, value in search.settings(number).items()]
        if own_settings := _accepted(config["model"]["class_path"], settings):
            yield _parsed(file, folder, name(number), config, [*options, *own_settings])


def _parsed(file: str, folder: Path, rung: str, config: dict[str, Any], options: Sequence[str]) -> dict[str, Any]:
    text = yaml.safe_dump(config, sort_keys=False)
    arguments = [f"--config={text}", *options, f"--name={rung}", f"--runs={folder}"]
    try:
        cli = ParsedOnly(arguments)
    except UserError as error:
        raise UserError(f"{file}, rung {rung}: {error}") from error
    parsed = yaml.safe_load(cli.parser.dump(cli.config, skip_unset=False))
    return {k: v for k, v in parsed.items() if k not in ("config", "ckpt_path", "allow_changes")}


def _content(file: str) -> dict[str, Any]:
    content = read_config(Path(file))
    if not isinstance(content, dict) or "rungs" not in content:
        raise UserError(f"--config: {as_given(file)} is not a ladder: it has no rungs; train a single method with fit")
    if odd := [str(k) for k in content if k not in KEYS]:
        raise UserError(f"{file}: {odd[0]} is not a key of a ladder; expected {', '.join(KEYS)}")
    return content


def _mapping(file: str, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{file}, {key}: expected a mapping, got {repr(value)}")
    return value


def _checked_seeds(file: str, seeds: Any) -> tuple[int, ...]:
    whole = isinstance(seeds, list | tuple) and all(type(s) is int and 0 <= s < 2**32 for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{file}, seeds: expected different whole numbers from 0, such as [1, 2, 3], got {seeds!r}")
    return tuple(seeds)


def _model(file: str, rung: str, model: Any, common: Mapping[str, Any]) -> dict[str, Any]:
    if not re.fullmatch(r"[A-Za-z_][\w.-]*", rung) or rung in FOLDERS:
        raise UserError(f"{file}, rungs: {rung!r} cannot be the name of a folder; use letters, digits, '_' and '-'")
    refuse_name(f"{file}, rungs", rung)
    if not isinstance(model, dict) or "class_path" not in model:
        raise UserError(f"{file}, rungs.{rung}: expected class_path and init_args, got {model!r}")
    if odd := [k for k in model if k not in ("class_path", "init_args", "weights")]:
        raise UserError(
            f"{file}, rungs.{rung}.{odd[0]}: a rung sets only its model: class_path, and its options under init_args; "
            "data, budget and selection rule are the same for all and belong under shared"
        )
    own = _mapping(file, {f"rungs.{rung}.init_args": model.get("init_args")}, f"rungs.{rung}.init_args")
    if twice := [k for k in own if k in common]:
        raise UserError(
            f"{file}, rungs.{rung}.init_args.{twice[0]}: model.init_args sets this for all rungs; keep one of the two"
        )
    fixed = _fixed(model["class_path"])
    accepted = {name: value for name, value in common.items() if name not in fixed}
    return {"class_path": model["class_path"], "init_args": {**accepted, **own}}


def _fixed(class_path: Any) -> frozenset[str]:
    """Arguments that a method sets itself, such as the backbone of `Linear`; shared values do not apply to it."""
    try:
        return fixed_options(import_class(str(class_path)))
    except UserError:
        return frozenset()  # reported by the parser


def _accepted(class_path: Any, options: Sequence[str]) -> list[str]:
    """The options without those that a method sets itself."""
    fixed, accepted, skip = _fixed(class_path), [], False
    for option in options:
        name, equals, _ = option.partition("=")
        if option.startswith("--"):
            path = name.rstrip("+").removeprefix("--model.").removeprefix("init_args.")
            skip = name.startswith("--model.") and path.partition(".")[0] in fixed
        if not skip:
            accepted.append(option)
        skip = skip and not equals  # without "=", the next argument is the value
    return accepted
