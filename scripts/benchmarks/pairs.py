"""The method of another library that each few-shot method is compared with: the same one where there is one."""

from __future__ import annotations

from typing import Any, NamedTuple

TASKS = 1000  # of an evaluation


class Pair(NamedTuple):
    """A method, the peer's method that it is timed beside, and how the work differs.

    Attributes:
        name: Name of the method.
        peer: Library and name of the method there.
        differs: Difference of the work; empty if there is none: both sides must then compute the same numbers.
        options: Options of the method.
        tasks: Numbers of evaluation tasks for which the two sides are timed.
    """

    name: str
    peer: str
    differs: str = ""
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed
    tasks: tuple[int, int] = (TASKS, TASKS)

    def __str__(self) -> str:
        return ", ".join([self.name, *(f"{key}: {value}" for key, value in self.options.items())])


RATE, STEPS, WAYS, CLASSES = 0.01, 5, 5, 20
GRADIENT_BASED = [
    Pair("MAML", "learn2learn MAML"),
    Pair("MAML", "learn2learn MAML", options={"first_order": True}),
    Pair("ANIL", "learn2learn ANIL"),
    Pair("BOIL", "learn2learn BOIL"),
    Pair("MetaSGD", "learn2learn MetaSGD"),
    Pair("MAMLPlusPlus", "learn2learn MAML", "losses of all inner steps; rates and batch norm of each step"),
    Pair("ProtoMAML", "learn2learn MAML", "the head starts from prototypes"),
    Pair("IMAML", "learn2learn MAML", "implicit gradients with 5 steps of the solver"),
    Pair("Reptile", "learn2learn MAML", "inner Adam, and no outer gradient but θ - φ; learn2learn first-order"),
]
OF_SINES = [
    Pair("CAVIA", "learn2learn MAML", "only 5 context inputs adapt", {"inner_lr": 1.0, "inner_steps": 1}),
    Pair("CNP", "learn2learn MAML", "no inner loop; a decoder with two layers of 128"),
    Pair("AttentiveCNP", "learn2learn MAML", "no inner loop; attention, and a decoder with two layers of 128"),
]
EPISODIC = [
    Pair("ProtoNet", "learn2learn ProtoNet"),
    Pair("MatchingNet", "easyfsl MatchingNetworks", "easyfsl adds LSTMs over the support set"),
    Pair("RelationNet", "easyfsl RelationNetworks", options={"batch_norm": "transductive"}),
    Pair("FEAT", "easyfsl FEAT", "easyfsl has no contrastive loss"),
    Pair("MetaBaseline", "learn2learn ProtoNet", "cosines"),
    Pair("R2D2", "learn2learn ProtoNet", "a ridge regression for each task"),
    Pair("MetaOptNet", "learn2learn ProtoNet", "a ridge regression for each task"),
    Pair("SoftKMeans", "learn2learn ProtoNet", "prototypes refined by the queries"),
    Pair("InContextTransformer", "learn2learn ProtoNet", "a transformer of 6 layers on the features"),
]
CLASSIFIERS = [
    *(
        Pair(name, "torch loop")
        for name in ["SimpleShot", "RFS", "BDCSPN", "LaplacianShot", "TIM", "AlphaTIM", "PTMAP"]
    ),
    Pair("Baseline", "torch loop", "features of length 1"),
]
KINDS = {
    "Conv4-64 with strides, 4 tasks 5-way 1-shot, 5 queries, 5 inner steps": GRADIENT_BASED,
    "sine waves, MLP 40-40, 25 tasks of 10 and 10 points, 1 inner step": OF_SINES,
    "Conv4-64, 4 tasks 5-way 1-shot, 5 queries": EPISODIC,
    "Conv4-64, 120 images of 20 classes": CLASSIFIERS,
}
FROM_EMBEDDINGS = [
    Pair("ProtoNet", "easyfsl PrototypicalNetworks"),
    Pair("MatchingNet", "easyfsl MatchingNetworks", "easyfsl adds LSTMs"),
    Pair("RelationNet", "easyfsl RelationNetworks", options={"channels": 16}),
    Pair("FEAT", "easyfsl FEAT"),
    Pair("SimpleShot", "easyfsl SimpleShot"),
    Pair("BDCSPN", "easyfsl BDCSPN", "queries shifted, and not in easyfsl", {"scale": 1.0}, (TASKS, 200)),
    Pair("LaplacianShot", "easyfsl LaplacianShot", "queries shifted, and not in easyfsl", tasks=(TASKS, 200)),
    Pair("TIM", "easyfsl TIM", "alternating updates here, gradient descent there", tasks=(200, 20)),
    Pair("AlphaTIM", "easyfsl TIM", "α-divergences; 50 steps of Adam in both", {"steps": 50}, tasks=(200, 20)),
    Pair("PTMAP", "easyfsl PTMAP", "Newton's method here, Sinkhorn's iteration there", tasks=(40, 20)),
    Pair(
        "Baseline",
        "easyfsl Finetune",
        "200 steps of descent here, of Adam there",
        {"head": "cosine", "head_steps": 200},
        tasks=(TASKS, 20),
    ),
    Pair("RFS", "scikit-learn LogisticRegression", tasks=(TASKS, 500)),
    Pair("MetaBaseline", "easyfsl PrototypicalNetworks", "cosines"),
    Pair("R2D2", "easyfsl PrototypicalNetworks", "a ridge regression for each task"),
    Pair("MetaOptNet", "easyfsl PrototypicalNetworks", "a ridge regression for each task"),
    Pair("SoftKMeans", "easyfsl PrototypicalNetworks", "prototypes refined by the queries"),
    Pair("InContextTransformer", "easyfsl PrototypicalNetworks", "a transformer of 6 layers"),
]
