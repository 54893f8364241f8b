"""The cost of every few-shot method: a training step, and 1000 evaluation tasks, beside another library."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import peers, work
from benchmarks.evaluation import easyfsl_evaluation, easyfsl_method, features, our_evaluation, sklearn_evaluation
from benchmarks.images import protonet_module
from benchmarks.measure import Timing, side_by_side
from benchmarks.pairs import CLASSES, FROM_EMBEDDINGS, GRADIENT_BASED, KINDS, OF_SINES, RATE, STEPS, TASKS, WAYS, Pair
from benchmarks.row import Row, Setting, check_equal
from lightning_meta import meta
from lightning_meta.batches import Episode, Examples
from lightning_meta.functional import task_map
from lightning_meta.meta import MetaModule
from lightning_meta.meta.all_classes import images_of_all_classes
from lightning_meta.meta.choice import by_rule
from lightning_meta.nn import MLP
from lightning_meta.tasks import EpisodeSpec

Sides = dict[str, Callable[[], object]]


def method_steps(setting: Setting) -> Iterator[Row]:
    """A training step of each method without sampling; if both sides do the same work, their losses must be equal."""
    device = setting.device
    for what, pairs in KINDS.items():
        for pair in pairs[:1] if setting.short else pairs:
            module, batch = made(pair, device)
            sides: Sides = {"ours": work.training_step(module, partial(work.moved, batch, device), device)}
            if (peer := peer_of(pair, module, batch)) is not None:
                if not pair.differs:
                    check_equal(module.meta_batch_loss(batch).loss, torch.stack([*peer.losses()]), str(pair))
                sides["theirs"] = peer.step
            took = side_by_side(sides, device, setting.repeats, setting.seconds, clock(setting))
            work_name = f"a training step of {pair}; {what}"
            yield Row(work_name, took["ours"], pair.peer, took.get("theirs"), None, pair.differs)


def evaluations(setting: Setting) -> Iterator[Row]:
    """Evaluate 1000 tasks with each method: 5-way 1-shot with 15 queries from stored embeddings, sampling included.

    Methods with an inner loop adapt to images and predict them, without sampling; those of sine waves to points. If
    both sides do the same work, their predictions must be equal.
    """
    pool, device = features(), setting.device
    for pair in [pair for pair in FROM_EMBEDDINGS if pair.name == "BDCSPN" or not setting.short]:
        (library, name), (here, there) = pair.peer.split(), pair.tasks
        ours = our_evaluation(pool, device, getattr(meta, pair.name), tasks=here, **pair.options)
        sides: Sides = {"ours": ours}
        accuracies = [ours()]
        if peers.peer("sklearn" if library == "scikit-learn" else library) is not None:
            theirs = sklearn_evaluation(pool, 1, there)
            if library == "easyfsl":
                theirs = easyfsl_evaluation(pool, device, name, there)
            sides["theirs"] = theirs
            accuracies.append(theirs())
        note = "accuracies " + ", ".join(f"{accuracy:.2f}" for accuracy in accuracies)
        yield _evaluation("from embeddings", pair, sides, setting, note)
    for pair in (
        [] if setting.short else [pair for pair in GRADIENT_BASED + OF_SINES if "first_order" not in pair.options]
    ):
        module, batch = made(pair, device)
        batch = batch if pair in OF_SINES else work.random_images(20, WAYS, 1, 15, 28, device)
        sides = {"ours": partial(our_outputs, module.eval(), batch)}
        if (peer := peer_of(pair, module, batch, first_order=True)) is not None:
            sides["theirs"] = peer.predict
            if not pair.differs:
                check_equal(our_outputs(module, batch), peer.predict(), str(pair))
        what = "of sine waves" if pair in OF_SINES else "of images, 5 inner steps"
        yield _evaluation(what, pair._replace(tasks=(len(batch.tasks),) * 2), sides, setting)


def _evaluation(what: str, pair: Pair, sides: Sides, setting: Setting, note: str = "") -> Row:
    """Time each side for its number of tasks; the row has the times of 1000 tasks."""
    took = side_by_side(sides, setting.device, min(setting.repeats, 3), 0, clock(setting))
    times = {
        side: Timing(*(TASKS / count * s for s in took[side]))
        for side, count in zip(("ours", "theirs"), pair.tasks, strict=True)
        if side in took
    }
    few = "" if min(pair.tasks) == TASKS else "timed on {} and {} tasks".format(*pair.tasks)
    notes = "; ".join(filter(None, (pair.differs, note, few)))
    work_name = f"evaluating 1000 tasks {what}: {pair}"
    return Row(work_name, times["ours"], pair.peer, times.get("theirs"), None, notes)


def clock(setting: Setting) -> Callable[[], float]:
    """Processor time on a CPU, since other processes may run."""
    return time.process_time if setting.device.type == "cpu" else time.perf_counter


def made(pair: Pair, device: torch.device) -> tuple[MetaModule, Episode]:
    """The module and a meta-batch of its training."""
    torch.manual_seed(0)
    method, options = getattr(meta, pair.name), dict(pair.options)
    if pair in OF_SINES:
        backbone: nn.Module = MLP(6 if pair.name == "CAVIA" else 2, (40, 40))
        module = method(backbone, episodes=EpisodeSpec("regression", (1,), 1), **options)
        return module.train().to(device), work.sinusoids(25, 10, device)
    if pair in GRADIENT_BASED:
        backbone, options = work.conv4(), {"inner_lr": RATE, "inner_steps": STEPS, **options}
    else:
        backbone = embedding(pair)
    module = method(backbone, episodes=EpisodeSpec("classification", (1, 28, 28), WAYS, CLASSES), **options)
    batch = work.random_images(4, WAYS, 1, 5, 28, device)
    return module.train().to(device), batch._replace(classes=torch.arange(CLASSES, device=device).view(4, WAYS))


def embedding(pair: Pair) -> nn.Module:
    """ProtoNet's network; RelationNet's has two max-pools fewer."""
    return work.conv4(downsample="max_pool", spatial="flatten", halvings=2 if pair.name == "RelationNet" else None)


def our_outputs(module: MetaModule, batch: Episode) -> Tensor:
    """Predictions for the query sets of a meta-batch."""

    def one_task(support: Examples, x: Tensor) -> Tensor:
        return module.predict(module.adapt(support, batch.ways), x)

    with torch.inference_mode():
        return task_map(one_task, by_rule(module.network, True, batch), batch.support, batch.query.x)


def peer_of(pair: Pair, module: MetaModule, batch: Episode, first_order: bool = False) -> peers.Peer | None:
    """The other side, with the same weights if it is the same method; None if the library is not installed."""
    (library, name), device = pair.peer.split(), batch.tasks.device
    if library == "torch":
        backbone, classifier = embedding(pair), nn.Linear(64, CLASSES)
        backbone.load_state_dict(module.backbone.state_dict())
        assert isinstance(module.classifier, nn.Linear)
        classifier.load_state_dict(module.classifier.state_dict())
        network: nn.Module = nn.Sequential(backbone, classifier).to(device)
        x, y = images_of_all_classes(batch)
        return peers.Peer(lambda t: network(x), [y], F.cross_entropy, network.parameters())
    if (package := peers.peer(library)) is None:
        return None
    if library == "easyfsl":
        network = embedding(pair).to(device)
        network.load_state_dict(module.backbone.state_dict())
        return peers.easyfsl_episodes(easyfsl_method(name, network, module).to(device), name, batch)
    if name == "ProtoNet":
        network = peers.own_network(package, protonet_module(device))
        outputs = partial(peers.protonet_outputs, network, batch)
        return peers.Peer(outputs, batch.query.y, F.cross_entropy, network.parameters())
    sines, first_order = pair in OF_SINES, first_order or pair.name == "Reptile" or "first_order" in pair.options
    like = work.sine_maml(1, False, device) if sines else work.image_maml(WAYS, STEPS, 28, device)  # the same seed
    network = like.network if sines else peers.own_network(package, like)
    learner, before, after = peers.maml_parts(package, name, network, 0.01 if sines else RATE, first_order)
    steps, loss = (1, F.mse_loss) if sines else (STEPS, F.cross_entropy)
    outputs = partial(peers.maml_outputs, learner, batch, steps, loss, before=before, after=after)
    return peers.Peer(outputs, batch.query.y, loss, nn.ModuleList([before, learner, after]).parameters())
