"""The same work with other libraries, written as in their examples."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lightning_meta.batches import Episode
from lightning_meta.data import Pool
from lightning_meta.meta import MetaModule


def peer(name: str) -> Any:
    """Import a library; None if it is not installed."""
    if importlib.util.find_spec(name) is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an unmaintained gym, and torchvision without its image library
        return importlib.import_module(name)


def own_network(l2l: Any, module: MetaModule) -> nn.Module:
    """learn2learn's four-block network, `OmniglotCNN` or `CNN4Backbone`, with the weights of our module."""
    weights = dict(module.network.named_parameters())
    if "head.weight" in weights:
        network = l2l.vision.models.OmniglotCNN(len(weights["head.weight"]))
        parts = {"head": network.classifier}
        blocks, prefix = network.base, "backbone.blocks"
    else:
        network = blocks = l2l.vision.models.CNN4Backbone(channels=1)
        parts, prefix = {}, "blocks"
    for i, block in enumerate(blocks):
        parts |= {f"{prefix}.{i}.0": block.conv, f"{prefix}.{i}.1": block.normalize}
    with torch.no_grad():
        for name, part in parts.items():
            part.weight.copy_(weights[f"{name}.weight"])
            part.bias.copy_(weights[f"{name}.bias"])
    network = network.to(next(module.parameters()).device)
    assert isinstance(network, nn.Module)
    return network


Loss = Callable[[Tensor, Tensor], Tensor]
SAME = nn.Identity()


class Peer:
    """A method of another library on the tasks of one meta-batch.

    Args:
        outputs: Query predictions of task t.
        targets: Query targets of each task.
        loss: The loss of a task.
        parameters: Parameters that a step trains.
    """

    def __init__(
        self,
        outputs: Callable[[int], Tensor],
        targets: Iterable[Tensor],
        loss: Loss,
        parameters: Iterable[Any],
    ) -> None:
        self.outputs, self.targets, self.loss = outputs, list(targets), loss
        self.optimizer = torch.optim.Adam(parameters, 0.001)

    def losses(self) -> Iterator[Tensor]:
        """The loss of each task."""
        return (self.loss(self.outputs(t), y) for t, y in enumerate(self.targets))

    def predict(self) -> Tensor:
        """The predictions of all tasks."""
        return torch.stack([self.outputs(t) for t in range(len(self.targets))])

    def step(self) -> None:
        """A step of Adam, with a backward pass for each task, as in the examples of the libraries."""
        self.optimizer.zero_grad()
        for loss in self.losses():
            (loss / len(self.targets)).backward()
        self.optimizer.step()


def torchopt_losses(network: nn.Module, batch: Episode, steps: int, rate: float, loss: Loss) -> Tensor:
    """MAML with torchopt's `MetaSGD`; the network is restored after each task."""
    torchopt = peer("torchopt")
    inner = torchopt.MetaSGD(network, lr=rate)
    parts = (network, inner)
    start = [torchopt.extract_state_dict(part, by="reference") for part in parts]
    losses = []
    for t in range(len(batch.tasks)):
        for _ in range(steps):
            inner.step(loss(network(batch.support.x[t]), batch.support.y[t]))
        losses.append(loss(network(batch.query.x[t]), batch.query.y[t]))
        for part, state in zip(parts, start, strict=True):
            torchopt.recover_state_dict(part, state)
    return torch.stack(losses)


def higher_losses(network: nn.Module, batch: Episode, steps: int, rate: float, loss: Loss) -> Tensor:
    """MAML with higher's `innerloop_ctx`."""
    inner = torch.optim.SGD(network.parameters(), lr=rate)
    losses = []
    for t in range(len(batch.tasks)):
        with peer("higher").innerloop_ctx(network, inner, copy_initial_weights=False) as (adapted, optimizer):
            for _ in range(steps):
                optimizer.step(loss(adapted(batch.support.x[t]), batch.support.y[t]))
            losses.append(loss(adapted(batch.query.x[t]), batch.query.y[t]))
    return torch.stack(losses)


def maml_losses(learner: Any, batch: Episode, steps: int, loss: Loss) -> Tensor:
    """MAML with learn2learn's documented loop: clone, adapt, and the query loss of each task."""
    outputs = [maml_outputs(learner, batch, steps, loss, t) for t in range(len(batch.tasks))]
    return torch.stack([loss(output, y) for output, y in zip(outputs, batch.query.y, strict=True)])


def maml_outputs(
    learner: Any, batch: Episode, steps: int, loss: Loss, t: int, before: nn.Module = SAME, after: nn.Module = SAME
) -> Tensor:
    """Query predictions of task t by learn2learn's loop; `before` and `after` are the parts that are not adapted."""
    support, query = before(batch.support.x[t]), before(batch.query.x[t])
    clone = learner.clone()
    for _ in range(steps):
        clone.adapt(loss(after(clone(support)), batch.support.y[t]))
    outputs: Tensor = after(clone(query))
    return outputs


def maml_parts(l2l: Any, name: str, network: Any, rate: float, first_order: bool) -> tuple[Any, nn.Module, nn.Module]:
    """MAML, Meta-SGD, or MAML over a part of the network (ANIL, BOIL): the learner, and the parts around it."""
    maml = partial(l2l.algorithms.MAML, lr=rate, first_order=first_order)
    if not isinstance(network, l2l.vision.models.OmniglotCNN):
        return maml(network), SAME, SAME
    features, head = network.features, network.classifier
    if name == "ANIL":
        return maml(head), features, SAME
    if name == "BOIL":
        return maml(features), SAME, head
    whole = nn.Sequential(features, head)  # each layer once: its Meta-SGD adapts none that it meets twice
    if name == "MetaSGD":
        return l2l.algorithms.MetaSGD(whole, lr=rate, first_order=first_order), SAME, SAME
    return maml(whole), SAME, SAME


def easyfsl_episodes(model: Any, name: str, batch: Episode) -> Peer:
    """A method of easyfsl, with the loss of its documentation."""

    def outputs(t: int) -> Tensor:
        model.process_support_set(batch.support.x[t], batch.support.y[t])
        predicted: Tensor = model(batch.query.x[t])
        return predicted

    def squared_error(scores: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(scores, F.one_hot(y, scores.shape[-1]).to(scores.dtype))

    losses: dict[str, Loss] = {"MatchingNetworks": F.nll_loss, "RelationNetworks": squared_error}
    return Peer(outputs, batch.query.y, losses.get(name, F.cross_entropy), model.parameters())


def protonet_outputs(network: nn.Module, batch: Episode, t: int) -> Tensor:
    """Logits of task t as in `examples/vision/protonet_miniimagenet.py`, which embeds support and query together."""
    x = torch.cat([batch.support.x[t], batch.query.x[t]])
    support, query = network(x).flatten(1).split([len(batch.support.y[t]), len(batch.query.y[t])])
    prototypes = support.reshape(batch.ways, -1, support.shape[-1]).mean(1)
    return -((query.unsqueeze(1) - prototypes.unsqueeze(0)) ** 2).sum(2)


def taskset(l2l: Any, pool: Pool, ways: int, examples: int) -> Any:
    """learn2learn's task set on a pool in memory."""
    labels = torch.repeat_interleave(torch.arange(len(pool.names)), pool.sizes)
    x = pool.x.float() / 255
    data = l2l.data.MetaDataset(TensorDataset(x, labels))
    transforms = l2l.data.transforms
    chosen = [
        transforms.NWays(data, ways),
        transforms.KShots(data, examples),
        transforms.LoadData(data),
        transforms.RemapLabels(data),
        transforms.ConsecutiveLabels(data),
    ]
    return l2l.data.Taskset(data, task_transforms=chosen, num_tasks=-1)


def halves(x: Tensor, y: Tensor, ways: int, shots: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split a task of learn2learn, ordered by class, into support and query."""
    examples = len(y) // ways
    support = torch.arange(len(y)) % examples < shots
    return x[support], y[support], x[~support], y[~support]


def maml_step(
    l2l: Any, network: nn.Module, tasks: Any, count: int, ways: int, rate: float, device: torch.device
) -> Any:
    """A training step of `examples/vision/maml_omniglot.py`: 1 shot, 1 query a class, one inner step."""
    learner = l2l.algorithms.MAML(network, lr=rate, first_order=False).to(device)
    optimizer = torch.optim.Adam(learner.parameters(), 0.001)

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(count):
            x, y = (part.to(device) for part in tasks.sample())
            y, order = y.sort(stable=True)
            support_x, support_y, query_x, query_y = halves(x[order], y, ways, 1)
            clone = learner.clone()
            clone.adapt(F.cross_entropy(clone(support_x), support_y))
            F.cross_entropy(clone(query_x), query_y).backward()
        for p in learner.parameters():
            p.grad.data.mul_(1.0 / count)
        optimizer.step()

    return step


def protonet_step(
    network: nn.Module, tasks: Any, count: int, ways: int, shots: int, device: torch.device
) -> Callable[[], None]:
    """A training step of `examples/vision/protonet_miniimagenet.py`, over `count` tasks."""
    optimizer = torch.optim.Adam(network.parameters(), 0.001)

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(count):
            x, y = (part.to(device) for part in tasks.sample())
            y, order = y.sort(stable=True)
            features = network(x[order])
            mask = torch.arange(len(y)) % (len(y) // ways) < shots
            prototypes = features[mask].reshape(ways, shots, -1).mean(1)
            logits = -((features[~mask].unsqueeze(1) - prototypes.unsqueeze(0)) ** 2).sum(2)
            (F.cross_entropy(logits, y[~mask]) / count).backward()
        optimizer.step()

    return step
