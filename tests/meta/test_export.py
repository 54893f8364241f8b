"""A learned task as a file, against the predictor that wrote it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.meta import (
    BDCSPN,
    CAVIA,
    CNP,
    MAML,
    PTMAP,
    TIM,
    AlphaTIM,
    AttentiveCNP,
    Baseline,
    InContextTransformer,
    LaplacianShot,
    MetaModule,
    Predictor,
    ProtoMAML,
    ProtoNet,
    RelationNet,
)
from lightning_meta.nn import MLP, Conv4
from lightning_meta.run.programs import write_program
from lightning_meta.tasks import EpisodeSpec
from tests.meta.oracles import episodes, roughen, task
from tests.meta.test_predictor import SPEC, images

METHODS: dict[str, Callable[[], MetaModule]] = {
    "protonet": lambda: ProtoNet(Conv4(1, 4, blocks=2), episodes=SPEC),
    "protonet cosine transductive": lambda: ProtoNet(
        Conv4(1, 4, blocks=2), distance="cosine", batch_norm="transductive", episodes=SPEC
    ),
    "maml transductive": lambda: MAML(Conv4(1, 4, blocks=2), 0.1, 3, episodes=SPEC),
    "maml inductive": lambda: MAML(Conv4(1, 4, blocks=2), 0.1, 3, batch_norm="inductive", episodes=SPEC),
    "baseline": lambda: Baseline(Conv4(1, 4, blocks=2), episodes=replace(SPEC, classes=7)),
    "relation net": lambda: RelationNet(Conv4(1, 4, blocks=2), channels=4, width=4, episodes=SPEC),
    "in-context transformer": lambda: InContextTransformer(
        Conv4(1, 4, blocks=2), width=8, layers=2, heads=2, episodes=SPEC
    ),
    "proto maml": lambda: ProtoMAML(Conv4(1, 4, blocks=2), 0.1, 3, batch_norm="inductive", episodes=SPEC),
}
SLOW = {"relation net", "in-context transformer", "proto maml"}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in METHODS]
REGRESSION: dict[str, Callable[[EpisodeSpec], MetaModule]] = {
    "attentive cnp": lambda spec: AttentiveCNP(MLP(4, (8,)), decoder=(5,), episodes=spec),
    "cavia": lambda spec: CAVIA(MLP(5, (8,)), context_size=3, episodes=spec),
    "cnp": lambda spec: CNP(MLP(4, (8,)), decoder=(5,), episodes=spec),
    "in-context transformer": lambda spec: InContextTransformer(MLP(2, (8,)), 8, 2, 2, 8, episodes=spec),
}
# Stands in for a machine without this package: whatever would import it fails.
ELSEWHERE = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning_meta", "lightning"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import torch
extra = {"lightning_meta.json": ""}
model = torch.export.load(sys.argv[1], extra_files=extra).module()
print(json.dumps({"rows": model(torch.load(sys.argv[2])).tolist(), **json.loads(extra["lightning_meta.json"])}))
"""


def learned(name: str) -> tuple[Predictor, Tensor]:
    module = METHODS[name]()
    roughen(module)
    support, query = images()
    return module.predictor(support, ["owl", "owl", "ant", "ant", "bee", "bee"]), query


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_task_gives_the_same_numbers_for_any_number_of_inputs(name: str, tmp_path: Path) -> None:
    predictor, query = learned(name)
    training = predictor.module.train().training
    model = torch.export.load(predictor.export(tmp_path / "task.pt2")).module()
    assert predictor.module.training == training
    for count in (1, 5, len(query)):
        part = query[:count]
        torch.testing.assert_close(model(part / 255), predictor.probabilities(part), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("width", [5, 40], ids=["narrow", "wide"])  # fewer and more features than examples
@pytest.mark.parametrize("method", [AlphaTIM, BDCSPN, LaplacianShot, PTMAP, partial(TIM, steps=50)])
def test_methods_that_predict_queries_together_give_the_same_numbers_for_any_number_of_queries(
    method: Callable[..., MetaModule], width: int, tmp_path: Path
) -> None:
    """The test uses float64 and fewer steps of TIM, since some methods amplify rounding errors."""
    torch.manual_seed(0)
    module = method(MLP(64, (width,)), episodes=replace(SPEC, classes=7)).double()
    support, query = images()
    predictor = module.predictor(support, ["owl", "owl", "ant", "ant", "bee", "bee"])
    model = torch.export.load(predictor.export(tmp_path / "task.pt2", torch.uint8)).module()
    for count in (2, 5, len(query)):
        expected = predictor.probabilities(query[:count])
        assert expected.std() > 0.001
        torch.testing.assert_close(model(query[:count]), expected, rtol=0, atol=1e-6)
    assert (tmp_path / "task.pt2").stat().st_size < 2e6


@pytest.mark.slow
@pytest.mark.parametrize("name", REGRESSION)
def test_an_exported_function_gives_the_same_numbers_for_any_number_of_inputs(name: str, tmp_path: Path) -> None:
    module = REGRESSION[name](EpisodeSpec("regression", (2,), 2))
    support, query = task(episodes(module.spec, shots=4, queries=5, dtype=torch.float32), 0)
    predictor = module.predictor(support.x, support.y)
    model = torch.export.load(predictor.export(tmp_path / "task.pt2")).module()
    for count in (1, 5):
        torch.testing.assert_close(model(query.x[:count]), predictor(query.x[:count]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_of_its_own(name: str, dtype: torch.dtype) -> None:
    module = METHODS[name]().to(dtype)
    roughen(module)
    support, query = images()
    predictor = module.predictor(support, list("aabbcc"))
    expected = predictor.outputs(query)
    adapted, logits = predictor.as_module(), predictor.as_module(probabilities=False)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()  # training goes on
    for x in (query, query / 255):
        torch.testing.assert_close(logits(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(adapted(x), expected.softmax(-1), rtol=1e-5, atol=1e-5)
    assert not adapted.training
    assert not adapted(query).requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_says_whether_a_prediction_depends_on_the_others(name: str) -> None:
    predictor, query = learned(name)
    alone, among = predictor.probabilities(query[:1]), predictor.probabilities(query)[:1]
    assert predictor.depends_on_company == ("transductive" in name) == (not torch.allclose(alone, among, atol=1e-4))


def test_without_normalisation_nothing_depends_on_the_others() -> None:
    module = MAML(MLP(64, (8,)), 0.1, 2, batch_norm="transductive", episodes=SPEC)
    assert not module.predictor(images()[0], list("aabbcc")).depends_on_company


def test_a_file_may_take_stored_images_from_a_model_in_double_precision(tmp_path: Path) -> None:
    module = METHODS["maml inductive"]().double()
    support, query = images()
    predictor = module.predictor(support, list("aabbcc"))
    model = torch.export.load(predictor.export(tmp_path / "task.pt2", torch.uint8)).module()
    torch.testing.assert_close(model(query), predictor.probabilities(query))
    with pytest.raises(UserError, match=r"float32 or torch.uint8 inputs can be exported, got torch.int64"):
        predictor.export(tmp_path / "task.pt2", torch.int64)


def test_weights_lie_in_a_file_once(tmp_path: Path) -> None:
    predictor, _ = learned("maml transductive")
    program = torch.export.load(predictor.export(tmp_path / "task.pt2"))
    own = [*predictor.module.network.parameters(), *predictor.module.network.buffers()]
    assert sum(t.numel() for t in program.state_dict.values()) == sum(t.numel() for t in own)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_onnx_gives_the_same_numbers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    predictor, query = learned(name)
    session = runtime.InferenceSession(str(predictor.export(tmp_path / "task.onnx")))
    about = json.loads(session.get_modelmeta().custom_metadata_map["lightning_meta.json"])
    assert about["classes"] == ["ant", "bee", "owl"]
    assert about["depends_on_company"] == ("transductive" in name)
    for count in (1, 5, len(query)):
        part = query[:count]
        (found,) = session.run(None, {session.get_inputs()[0].name: (part / 255).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), predictor.probabilities(part), rtol=0, atol=1e-5)


def test_a_task_is_used_where_this_package_is_not(tmp_path: Path) -> None:
    predictor, query = learned("protonet")
    predictor.export(tmp_path / "task.pt2")
    torch.save(query / 255, tmp_path / "x.pt")
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "task.pt2"), str(tmp_path / "x.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["classes"] == ["ant", "bee", "owl"]
    torch.testing.assert_close(torch.tensor(said["rows"]), predictor.probabilities(query), rtol=0, atol=1e-6)


def test_regression_exports_predictions(tmp_path: Path) -> None:
    module = MAML(MLP(1, [8]), 0.01, 2, episodes=EpisodeSpec("regression", (1,), 1))
    predictor = module.predictor(torch.randn(5, 1), torch.randn(5, 1))
    x = torch.randn(7, 1)
    model = torch.export.load(predictor.export(tmp_path / "task.pt2")).module()
    torch.testing.assert_close(model(x), predictor.outputs(x), rtol=0, atol=1e-6)


class Fickle(ProtoNet):
    """Predicts by what the numbers are, which no graph can hold."""

    def logits(self, summary: dict[str, Tensor], features: Tensor) -> Tensor:
        return super().logits(summary, features) * (2 if float(features.sum()) > 0 else 1)


@pytest.mark.parametrize(
    ("file", "said"), [("task.txt", ".pt2 or .onnx"), ("nowhere/task.pt2", "no folder"), ("task.pt2", "Fickle")]
)
def test_what_cannot_be_exported_is_one_error_and_no_file(
    file: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    support, _ = images()
    predictor = Fickle(Conv4(1, 4, blocks=2), episodes=SPEC).predictor(support, [0, 0, 1, 1, 2, 2])
    with pytest.raises(UserError, match=said) as raised:
        predictor.export(tmp_path / file)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_a_failure_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    file = learned("protonet")[0].export(tmp_path / "task.pt2")
    before = file.read_bytes()
    with pytest.raises(UserError, match="Fickle"):
        Fickle(Conv4(1, 4, blocks=2), episodes=SPEC).predictor(images()[0], list("aabbcc")).export(file)
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["task.pt2"]


@pytest.mark.slow
def test_an_operator_that_onnx_lacks_is_named_in_one_line(tmp_path: Path) -> None:
    class Solves(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.solve_ex(x.T @ x + 1, x.T).result.T

    with pytest.raises(
        UserError, match=r"Solves cannot be exported: .*linalg_solve_ex.*; give a file that ends in \.pt2"
    ) as error:
        write_program(tmp_path / "task.onnx", [Solves], {"x": torch.rand(3, 2)}, {}, "Solves")
    assert "\n" not in str(error.value)
    write_program(tmp_path / "task.pt2", [Solves], {"x": torch.rand(3, 2)}, {}, "Solves")
