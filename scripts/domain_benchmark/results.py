"""Results of the benchmark from folders, and their CSV file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reproducing.storing import RunFolder, read_json

from domain_benchmark.domains import DOMAINS, Domain, Setting
from domain_benchmark.entry import Entry
from domain_benchmark.measure import measured


@dataclass(frozen=True)
class Result:
    """The result of a method on the fixed tasks of a setting; unknown fields are "".

    Attributes:
        method: Name of the method file.
        domain: Name of the domain.
        setting: Name of the setting.
        tasks: Number of tasks.
        metric: `accuracy` in per cent, or `mse`.
        score: Mean score over tasks.
        half_width: Half-width of the 95 % interval over tasks.
        problem: Reason for a missing score.
        steps: Number of training steps.
        planned: Number of steps in the method file.
        seed: Seed of weights and training tasks.
        train_seconds: Duration of training and validations in seconds.
        test_seconds: Duration of the test in seconds, without reading data.
        episodes: The sha256 of the tasks.
        data: The sha256 of the examples; "" for generated tasks.
        parameters: Number of trained parameters.
        version: Version of method file, domain and budget.
        machine: Description of the machine.
        python: Version of Python.
        torch: Version of torch.
        lightning_meta: Version of this package.
        revision: Commit of the working tree.
    """

    method: str
    domain: str
    setting: str
    tasks: str
    metric: str = ""
    score: str = ""
    half_width: str = ""
    problem: str = ""
    steps: str = ""
    planned: str = ""
    seed: str = ""
    train_seconds: str = ""
    test_seconds: str = ""
    episodes: str = ""
    data: str = ""
    parameters: str = ""
    version: str = ""
    machine: str = ""
    python: str = ""
    torch: str = ""
    lightning_meta: str = ""
    revision: str = ""

    @property
    def place(self) -> tuple[str, str, str]:
        """The key under which a later result replaces this one."""
        return self.method, self.domain, self.setting


def folder_of(runs: Path, entry: Entry, domain: Domain, steps: int, seed: int) -> Path:
    """Folder of a method in a domain."""
    return runs.resolve() / "domains" / entry.name / entry.version(domain, steps, seed) / domain.name


def finished(folder: Path, domain: Domain) -> bool:
    """Whether every setting has a score or a permanent reason for none."""
    return all(setting.name in measured(folder)["tests"] for setting in domain.settings)


def results_of(folder: Path, entry: Entry, domain: Domain, steps: int, seed: int, problem: str = "") -> list[Result]:
    """The lines of a method in a domain.

    Args:
        folder: Folder of the method and domain.
        entry: The method.
        domain: The domain.
        steps: Number of training steps.
        seed: The seed.
        problem: Reason for not running, if the folder has none.
    """
    noted, stored = measured(folder), RunFolder(folder)
    of_run: dict[str, str] = {}
    if stored.run is not None and stored.trained:
        found = read_json(stored.run / "results.json")
        of_run = {name: str(found["versions"][name]) for name in ("python", "torch", "lightning_meta")}
        of_run |= {"revision": str(found["git_revision"] or ""), "data": str(found["data_fingerprint"] or "")}
        of_run |= {"train_seconds": f"{found['train_time_s']:.1f}", "parameters": str(found["trainable_parameters"])}
        of_run |= {"steps": str(found["steps"]), "machine": "; ".join(stored.machines)}
    planned = {"planned": str(entry.steps), "seed": str(seed), "version": folder.parent.name}
    lines = []
    for setting in domain.settings:
        line = Result(entry.name, domain.name, setting.name, str(setting.tasks)).__dict__
        test = noted["tests"].get(setting.name)
        if test is None or "problem" in test:
            why = (test or {}).get("problem") or noted["problem"] or problem or "the command was not run to its end"
            lines.append(Result(**{**line, "problem": why}))
            continue
        scale = 100 if test["metric"] == "accuracy" else 1
        score, half_width = ("" if test[n] is None else f"{scale * test[n]:.6g}" for n in ("score", "half"))
        of_test = {"metric": test["metric"], "score": score, "half_width": half_width, "episodes": test["episodes"]}
        if not score:
            of_test["problem"] = "the score is not finite"
        lines.append(Result(**{**line, **of_run, **planned, **of_test, "test_seconds": f"{test['seconds']:.1f}"}))
    return lines


def merged(old: Iterable[Result], new: Iterable[Result]) -> list[Result]:
    """Merge results in the order of domains and then methods; new ones replace old ones.

    Args:
        old: Old results; those of removed settings are dropped.
        new: New results; one without a score does not replace one with a score.
    """
    by_place = {result.place: result for result in old}
    by_place |= {r.place: r for r in new if r.score or not by_place.get(r.place, r).score}
    methods = sorted({method for method, _, _ in by_place})
    places = [(m, d.name, s.name) for d in DOMAINS for s in d.settings for m in methods]
    return [by_place[place] for place in places if place in by_place]


def setting_of(result: Result) -> tuple[Domain, Setting]:
    """The domain and setting of a line."""
    domain = next(domain for domain in DOMAINS if domain.name == result.domain)
    return domain, next(setting for setting in domain.settings if setting.name == result.setting)
