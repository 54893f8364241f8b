"""Read the file of a ladder, and check the configuration of each rung with the parser of `fit`."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_meta.cli.children import by_option, parsed
from lightning_meta.cli.config_text import read_config
from lightning_meta.cli.ladder.search import TUNED, Search, read_search
from lightning_meta.cli.shipped import as_given
from lightning_meta.cli.sweep.file import check_keys
from lightning_meta.describing import fixed_options
from lightning_meta.errors import UserError
from lightning_meta.import_paths import import_class
from lightning_meta.multitask import Grouped, Independent
from lightning_meta.run.directory import refuse_name
from lightning_meta.weightings import Aggregator, Equal, GradientWeighting

KEYS = ("seeds", "baseline", "shared", "model", "tune", "rungs")
OF_THE_LADDER = ("config", "seed_everything", "name", "runs", "ckpt_path", "allow_changes", "model", "model.class_path")
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
        trials: Configurations of the trials by tuned rung, without loss weights.
        weights: Source of the loss weights by rung: `TUNED`, or the rung whose mean weights are used.
    """

    folder: Path
    baseline: str
    seeds: tuple[int, ...]
    rungs: Mapping[str, dict[str, Any]]
    search: Search | None = None
    trials: Mapping[str, Sequence[dict[str, Any]]] = field(default_factory=dict)
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
    content = read_config(Path(file))
    if not isinstance(content, dict) or "rungs" not in content:
        raise UserError(f"--config: {as_given(file)} is not a ladder: it has no rungs; train a single method with fit")
    check_keys(file, content, KEYS)
    shared, model, in_file = (_mapping(f"{file}, {key}", content.get(key)) for key in ("shared", "model", "rungs"))
    check_keys(f"{file}, model", model, ("init_args",))
    if odd := [k for k in shared if k in OF_THE_LADDER]:
        raise UserError(f"{file}, shared.{odd[0]}: a ladder sets this itself; remove it")
    checked_seeds = _seeds(file, content.get("seeds") if seeds is None else seeds)
    if clash := [rung for rung in extra_rungs or {} if rung in in_file]:
        raise UserError(f"{file}, rungs.{clash[0]}: --groups adds a rung of this name; rename the one in the file")
    chosen = list(in_file) if rungs is None else list(dict.fromkeys(map(str, rungs)))
    if missing := [rung for rung in chosen if rung not in in_file]:
        raise UserError(f"--rungs: there is no rung {missing[0]!r} in {file}; it has {', '.join(in_file)}")
    models = {rung: in_file[rung] for rung in chosen} | {**(extra_rungs or {})}
    baseline = content.get("baseline", next(iter(in_file), None))
    if not isinstance(baseline, str) or baseline not in models:
        raise UserError(f"{file}, baseline: {baseline!r} is not one of the rungs to train ({', '.join(models)})")
    if "tune" not in content and trials is not None:
        raise UserError(f"--trials: {file} has no section tune, so there are no trials")
    search = read_search(f"{file}, tune", content["tune"], trials, checked_seeds) if "tune" in content else None
    weights = _weight_sources(file, models, search)
    common = _mapping(f"{file}, model.init_args", model.get("init_args"))
    configs, arguments, complete = {}, {}, {}
    for rung, spec in models.items():
        _check_name(file, rung)
        if weights.get(rung, TUNED) == TUNED:
            configs[rung] = {**shared, "model": _model(f"{file}, rungs.{rung}", spec, common)}
            arguments[rung] = _accepted(configs[rung]["model"]["class_path"], options)
            complete[rung] = _parsed(file, folder, rung, configs[rung], arguments[rung])
    searched = {}
    if search is not None:
        _check_tuning(file, complete, weights)
        for rung, config in configs.items():
            # A rung with tuned weights spends half of its trials on the settings, with weights of 1.
            count = (search.trials + 1) // 2 if rung in weights else search.trials
            searched[rung] = [{**complete[rung], "name": f"{rung}_trial_0", "runs": str(folder / "trials")}]
            for trial in range(1, count):
                settings = [f"--{option}={value}" for option, value in search.settings(trial).items()]
                if own := _accepted(config["model"]["class_path"], settings):  # else there is nothing to tune
                    own = [*arguments[rung], *own]
                    searched[rung].append(_parsed(file, folder / "trials", f"{rung}_trial_{trial}", config, own))
    complete = {rung: complete.get(rung) or {**complete[weights[rung]], "name": rung} for rung in models}
    return Ladder(folder, baseline, checked_seeds, complete, search, searched, weights)


def _weight_sources(file: str, models: Mapping[str, Any], search: Search | None) -> dict[str, str]:
    """The source of the loss weights of each rung that has the key `weights`."""
    sources = {rung: m["weights"] for rung, m in models.items() if isinstance(m, dict) and "weights" in m}
    others = [rung for rung in models if rung not in sources]
    for rung, source in sources.items():
        if search is None:
            raise UserError(f"{file}, rungs.{rung}.weights: add a section tune with the number of trials")
        if source != TUNED and (source not in others or len(models[rung]) > 1):
            raise UserError(
                f"{file}, rungs.{rung}.weights: expected {TUNED} and a model, or only the rung whose mean weights are "
                f"used ({', '.join(others)}), got {models[rung]}"
            )
    return sources


def _check_tuning(file: str, rungs: Mapping[str, dict[str, Any]], weights: Mapping[str, str]) -> None:
    """Check that trials can be compared, and that rungs with a source of weights take and log weights."""
    if any(config["checkpoint"]["monitor"] is None for config in rungs.values()):
        raise UserError(
            f"{file}, tune: set shared.checkpoint.monitor, the validation metric that selects the best trial"
        )
    for rung, source in weights.items():
        where, model = f"{file}, rungs.{rung}.weights", rungs[rung if source == TUNED else source]["model"]
        weighting = model["init_args"].get("weighting", "none")
        if source != TUNED:
            kind = import_class(weighting["class_path"]) if isinstance(weighting, dict) else Equal
            if issubclass(kind, Equal) or (issubclass(kind, Aggregator) and not issubclass(kind, GradientWeighting)):
                raise UserError(f"{where}: {source} logs no weights ({kind.__name__})")
        elif weighting is not None or issubclass(import_class(model["class_path"]), Independent | Grouped):
            raise UserError(
                f"{where}: leave out model.weighting, and use a model with shared parameters and a weighting, such as "
                "lightning_meta.MultiHead"
            )


def _parsed(file: str, folder: Path, rung: str, config: dict[str, Any], options: Sequence[str]) -> dict[str, Any]:
    text = yaml.safe_dump(config, sort_keys=False)
    try:
        complete = parsed([f"--config={text}", *options, f"--name={rung}", f"--runs={folder}"])
    except UserError as error:
        raise UserError(f"{file}, rung {rung}: {error}") from error
    return {k: v for k, v in complete.items() if k not in ("config", "ckpt_path", "allow_changes")}


def _mapping(where: str, value: Any) -> dict[str, Any]:
    value = value or {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{where}: expected a mapping, got {reprlib.repr(value)}")
    return value


def _seeds(file: str, seeds: Any) -> tuple[int, ...]:
    whole = isinstance(seeds, list | tuple) and all(type(s) is int and 0 <= s < 2**32 for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{file}, seeds: expected different whole numbers from 0, such as [1, 2, 3], got {seeds!r}")
    return tuple(seeds)


def _check_name(file: str, rung: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][\w.-]*", rung) or rung in FOLDERS:
        raise UserError(f"{file}, rungs: {rung!r} cannot be the name of a folder; use letters, digits, '_' and '-'")
    refuse_name(f"{file}, rungs", rung)


def _model(where: str, model: Any, common: Mapping[str, Any]) -> dict[str, Any]:
    check_keys(where, model, ("class_path", "init_args", "weights"))
    if "class_path" not in model:
        raise UserError(f"{where}: expected class_path and init_args, got {model!r}")
    own = _mapping(f"{where}.init_args", model.get("init_args"))
    if twice := [k for k in own if k in common]:
        raise UserError(f"{where}.init_args.{twice[0]}: model.init_args sets this for all rungs; keep one of the two")
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
    fixed, accepted = _fixed(class_path), []
    for name, _, words in by_option(options):
        section, *path = name.rstrip("+").replace(".init_args.", ".").split(".")
        if section != "--model" or not fixed.intersection(path[:1]):
            accepted += words
    return accepted
