"""One line of the benchmark, from the folder that holds it, and the CSV file of all lines."""

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
    """A method on the fixed tasks of a setting; empty texts where nothing is known.

    Attributes:
        method: The name of its file.
        domain: The name of the domain.
        setting: The name of the setting.
        tasks: How many there are.
        metric: `accuracy` in per cent, or `mse`.
        score: The mean over tasks.
        half_width: Of its 95 % interval over tasks.
        problem: Why there is no score.
        steps: That it was trained for.
        planned: Steps that the method file asks for.
        seed: Of weights and training tasks.
        train_seconds: Time of the training and its validations.
        test_seconds: Time of the test, without reading data.
        episodes: The sha256 of the tasks.
        data: The sha256 of the examples; "" if tasks are made.
        parameters: That are trained.
        version: Of method file, domain and budget.
        machine: In words.
        python: Its version, as the next two.
        torch: See above.
        lightning_meta: See above.
        revision: The commit that was checked out.
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
        """What a later result replaces."""
        return self.method, self.domain, self.setting


def folder_of(runs: Path, entry: Entry, domain: Domain, steps: int, seed: int) -> Path:
    """Where a method is measured in a domain."""
    return runs.resolve() / "domains" / entry.name / entry.version(domain, steps, seed) / domain.name


def finished(folder: Path, domain: Domain) -> bool:
    """Whether every setting has a score, or a reason that stays."""
    return all(setting.name in measured(folder)["tests"] for setting in domain.settings)


def results_of(folder: Path, entry: Entry, domain: Domain, steps: int, seed: int, problem: str = "") -> list[Result]:
    """The lines of a method in a domain.

    Args:
        folder: Where it is measured.
        entry: The method.
        domain: The domain.
        steps: Training steps.
        seed: The seed.
        problem: Why it was not run, if the folder does not say so.
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
    """Results of both, in the order of domains and then of methods; new ones take the place of old ones.

    Args:
        old: Those of settings that are no more are dropped.
        new: A line without a score does not replace one that has one.
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
