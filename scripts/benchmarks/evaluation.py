"""Evaluation on embeddings with 64 features, normally distributed around a mean for each class."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks import peers
from benchmarks.pairs import TASKS
from benchmarks.work import drawn
from lightning_meta.batches import Examples
from lightning_meta.data import Pool
from lightning_meta.data.episodes import EpisodeShape
from lightning_meta.functional import TaskMap, task_map
from lightning_meta.meta import MetaModule, ProtoNet, RelationNet
from lightning_meta.tasks import EpisodeSpec

CHUNK, CLASSES, EACH, SIZE = 500, 100, 20, 64
SPEC = EpisodeSpec("classification", (SIZE,), 5, CLASSES)


def features() -> Pool:
    """Embeddings of 100 classes."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, 1, SIZE, generator=generator)
    x = means + 2 * torch.randn(CLASSES, EACH, SIZE, generator=generator)
    names = tuple(f"class {c}" for c in range(CLASSES))
    return Pool(x.flatten(0, 1), torch.full((CLASSES,), EACH), names, names)


def our_evaluation(
    pool: Pool,
    device: torch.device,
    method: type[MetaModule] = ProtoNet,
    shots: int = 1,
    tasks: int = TASKS,
    **options: Any,
) -> Callable[[], float]:
    """Mean accuracy over tasks, in meta-batches of up to 500."""
    chunk = min(CHUNK, tasks)
    module = method(nn.Flatten(), strategy="vmap", episodes=SPEC, **options).eval().to(device)
    pool = pool.to(device)

    def one_task(support: Examples, x: Tensor) -> Tensor:
        return module.predict(module.adapt(support, 5), x)

    def evaluate() -> float:
        draw = drawn(pool, chunk, EpisodeShape(5, shots, 15))
        accuracies = []
        with torch.inference_mode():
            for _ in range(tasks // chunk):
                batch = module.inputs(draw())
                outputs = task_map(one_task, TaskMap("vmap"), batch.support, batch.query.x)
                accuracies.append((outputs.argmax(-1) == batch.query.y).float().mean())
        return float(torch.stack(accuracies).mean())

    return evaluate


def sklearn_evaluation(pool: Pool, shots: int, tasks: int = TASKS) -> Callable[[], float]:
    """The same with the loop of RFS's authors (`meta_eval.py`): scikit-learn's logistic regression for each task."""
    from sklearn.linear_model import LogisticRegression

    def evaluate() -> float:
        draw, accuracies = drawn(pool, min(CHUNK, tasks), EpisodeShape(5, shots, 15)), []
        for _ in range(tasks // min(CHUNK, tasks)):
            batch = draw()
            support, query = (part._replace(x=F.normalize(part.x, dim=-1)) for part in (batch.support, batch.query))
            for t in range(len(batch.tasks)):
                classifier = LogisticRegression(C=1.0, max_iter=1000).fit(support.x[t].numpy(), support.y[t].numpy())
                right = classifier.predict(query.x[t].numpy()) == query.y[t].numpy()
                accuracies.append(float(right.mean()))
        return sum(accuracies) / len(accuracies)

    return evaluate


def easyfsl_method(name: str, network: nn.Module, like: MetaModule | None = None) -> Any:
    """A method of easyfsl for 64 features, by its name there, with its defaults; `like` gives the relation module."""
    peers.peer("easyfsl")
    from easyfsl import methods, modules

    options: dict[str, Any] = {}
    if name == "FEAT":
        options["attention_module"] = modules.MultiHeadAttention(1, SIZE, SIZE, SIZE)
    elif name == "PTMAP":
        options["feature_normalization"] = 2  # longer features make its plan NaN, for all of 1000 iterations
    elif name == "MatchingNetworks":
        options["feature_dimension"] = SIZE
    elif name == "RelationNetworks":
        like = like or RelationNet(nn.Flatten(), channels=16, episodes=SPEC)
        assert isinstance(like, RelationNet)
        network = nn.Sequential(network, nn.Unflatten(1, like.map_shape))
        options["relation_module"] = nn.Sequential(copy.deepcopy(like.relation), nn.Sigmoid())
        options["feature_dimension"] = like.map_shape[0]
    return getattr(methods, name)(network, **options)


def easyfsl_evaluation(
    pool: Pool, device: torch.device, name: str = "PrototypicalNetworks", tasks: int = TASKS
) -> Callable[[], float]:
    """The same with the sampler, feature data set and `evaluate` of easyfsl."""
    peers.peer("easyfsl")
    from easyfsl.datasets import FeaturesDataset
    from easyfsl.samplers import TaskSampler
    from easyfsl.utils import evaluate

    labels = torch.repeat_interleave(torch.arange(len(pool.names)), pool.sizes).tolist()
    data = FeaturesDataset(labels, pool.x, list(pool.names))

    class Sampler(TaskSampler):
        """Replaces the constructor, which passes an argument to torch that current releases refuse."""

        def __init__(self) -> None:
            self.n_way, self.n_shot, self.n_query, self.n_tasks = 5, 1, 15, tasks
            self.items_per_label: dict[int, list[int]] = {}
            for item, label in enumerate(labels):
                self.items_per_label.setdefault(label, []).append(item)

    sampler = Sampler()
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)
    model = easyfsl_method(name, nn.Identity()).to(device)
    return lambda: float(evaluate(model, loader, device=str(device), use_tqdm=False))
