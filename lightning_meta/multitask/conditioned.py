"""A network conditioned on a descriptor of the task: f(y given x, z_i)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_meta.checks import whole
from lightning_meta.errors import UserError, one_of
from lightning_meta.functional.random_bits import key, name_key
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.multitask.together import equally_many
from lightning_meta.nn.conditioning import Add, Concatenate, Entry, FiLM, Gate, widened
from lightning_meta.nn.features import output_size, shape_after, zeros_like_inputs
from lightning_meta.nn.heads import make_head, seeded
from lightning_meta.nn.stages import check_depth, stages_of
from lightning_meta.nn.stateless import in_evaluation_mode
from lightning_meta.tasks import TasksSpec

Descriptor = Literal["one_hot", "embedding", "given"]


class Conditioned(MultiTaskModule):
    r"""One network for all tasks, conditioned on a task descriptor: $f(y \mid x, z_i; \theta)$.

    With `enters: film` it is FiLM (Perez et al., AAAI 2018, https://arxiv.org/abs/1709.07871), conditioned on the task.
    All parameters except learned embeddings are shared, including the head, which has as many outputs as the largest
    task needs; a task uses the first of them. An input with targets of several tasks is run once for each.

    At a glance:
        - Shared: everything.
        - Own: a descriptor z_i: concatenated, added, FiLM, gate.
        - New task: give it a z.

    Run it:
        `python scripts/fit.py --config configs/conditioned_glyphs.yaml`.

    Logged:
        - `test/accuracy/<task>` or `test/r2/<task>`: score of each task on its test examples; `test/score`: the mean
          over tasks.
        - `train/loss`: sum of the losses over tasks, or their combination by `weighting`.

        `MultiTaskModule` explains the other metrics.

    Deviations:
        - Perez et al. compute scale and shift from a question by a recurrent network; here they are linear in z,
          without bias, and initially 1 and 0.
        - Their FiLM layer is inside a residual block, after a batch normalisation without scale and shift; here it
          precedes a stage of any backbone, whose normalisation has both.
        - `concatenate`, `add` and `gate` are not from a specific paper.

    Args:
        backbone: The network before the head.
        descriptor: Descriptor z_i: one-hot encoding of the task, learned embedding, or given by the data.
        enters: How z enters: as additional channels (`concatenate`), added after a linear map (`add`), as a scale and a
            shift of each channel (`film`), or as a gate on each channel (`gate`).
        at: Indices of the stages of the backbone before which z enters; 0 is the input; the number of stages stands for
            the head.
        embedding_size: Size of a learned embedding, at least 1.
        **options: Options of `MultiTaskModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        descriptor: Descriptor = "one_hot",
        enters: Entry = "concatenate",
        at: Sequence[int] = (0,),
        embedding_size: int = 16,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        one_of("descriptor", descriptor, Descriptor)
        one_of("enters", enters, Entry)
        if not at or len(set(at)) < len(at):
            raise UserError(f"at: expected one or more distinct positions for z to enter, got {list(at)}")
        whole(1, embedding_size=embedding_size)
        self.descriptor, self.enters, self.at, self.embedding_size = descriptor, enters, tuple(at), embedding_size

    def build(self, spec: TasksSpec) -> None:
        """Make the descriptors, the layers by which they enter, and the head."""
        output_size(self.backbone, self.input_shape, self.input_dtype)
        self.z = self._descriptors(spec)
        size = self.descriptors.shape[1]
        stages, shape, dtype = stages_of(self.backbone), self.input_shape, self.input_dtype
        self.entries = nn.ModuleDict()
        for place in self.at:
            check_depth("at", place, self.backbone, stages)
        if 0 in self.at and self.enters != "concatenate" and any(self.input_codes):
            raise UserError(
                f"at: z cannot enter codes of categories by {self.enters}, got at {list(self.at)}; let it enter behind "
                "their embeddings, at 1 or later, or by concatenate"
            )
        for place in range(len(stages) + 1):
            flat = False
            channels = shape[0]
            if place < len(stages):
                shape, dtype = shape_after(stages[place], shape, input_dtype=dtype), ""
            if place not in self.at:
                continue
            if self.enters == "concatenate":
                if place < len(stages):
                    stages[place], flat = widened(stages[place], size, f"at {place}")
                self.entries[str(place)] = Concatenate(flat)
            else:
                self.entries[str(place)] = {"add": Add, "film": FiLM, "gate": Gate}[self.enters](channels, size)
        self.backbone = nn.ModuleList(stages)
        features = shape[0] + (size if self.enters == "concatenate" and len(stages) in self.at else 0)
        outputs = max(task.outputs for task in spec.tasks.values())
        self.shared_head = make_head(features, outputs, self.head_hidden, self.head_dropout)
        like = next(self.backbone.parameters(), self.descriptors)
        for module in (self.z, self.entries, self.shared_head):
            module.to(like)
        self._check_entries(like)

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict for several tasks, each input with the descriptor of its task."""
        counts = [i.shape[0] for i in rows.values()]
        places = self.task_numbers
        numbers = torch.tensor([places[name] for name in rows], device=x.device)
        z = self.descriptors[numbers]
        if equally_many(counts):
            z = z.unsqueeze(1).expand(-1, counts[0], -1).flatten(0, 1)
        else:
            z = z.repeat_interleave(torch.tensor(counts, device=x.device), 0, output_size=sum(counts))
        outputs = self.conditioned(x[torch.cat(list(rows.values()))], z).split(counts)
        return {name: y[:, : self.spec.tasks[name].outputs] for name, y in zip(rows, outputs, strict=True)}

    def conditioned(self, x: Tensor, z: Tensor) -> Tensor:
        """f(y given x, z): map inputs `(M, *input_shape)` and descriptors `(M, Z)` to `(M, largest outputs)`."""
        h = x
        assert isinstance(self.backbone, nn.ModuleList)
        for place in range(len(self.backbone) + 1):
            if str(place) in self.entries:
                h = self.entries[str(place)](h, z)
            if place < len(self.backbone):
                h = self.backbone[place](h)
        outputs: Tensor = self.shared_head(h)
        return outputs

    @property
    def descriptors(self) -> Tensor:
        """The z of all tasks, `(T, Z)`."""
        return self.z.weight if isinstance(self.z, nn.Embedding) else torch.cat(list(self.z.parameters()))

    def own_modules(self, task: int) -> list[nn.Module]:
        """The task's learned embedding and stem."""
        return [*([self.z[task]] if isinstance(self.z, nn.ModuleList) else []), *super().own_modules(task)]

    def _descriptors(self, spec: TasksSpec) -> nn.Embedding | nn.ModuleList:
        names = list(spec.tasks)
        if self.descriptor == "embedding":  # separate modules, so that embeddings of absent tasks are not updated
            return nn.ModuleList(self._embedding(name) for name in names)
        if self.descriptor == "one_hot":
            return _fixed(torch.eye(len(names)))
        missing = [name for name in names if name not in spec.descriptors]
        if missing:
            raise UserError(
                f"descriptor: the data has no descriptor of {missing[0]!r}; use one_hot or embedding, "
                "or a source with descriptors()"
            )
        sizes = {len(spec.descriptors[name]) for name in names}
        if len(sizes) > 1:
            raise UserError(f"descriptor: all tasks need descriptors of the same length, got lengths {sorted(sizes)}")
        return _fixed(torch.tensor([spec.descriptors[name] for name in names]))

    def _embedding(self, name: str) -> nn.Embedding:
        with seeded(int(key(self.key, name_key(name), 1))):
            return nn.Embedding(1, self.embedding_size)

    @torch.no_grad()
    def _check_entries(self, like: Tensor) -> None:
        zeros = zeros_like_inputs(self.input_shape, self.input_dtype, like)
        try:
            with in_evaluation_mode(self):
                self.conditioned(zeros, self.descriptors[:1].expand(2, -1))
        except RuntimeError as error:
            raise UserError(
                f"at: z cannot enter {list(self.at)} by {self.enters}: {str(error).splitlines()[0]}; "
                "let it enter by film, add or gate, or elsewhere"
            ) from error


def _fixed(descriptors: Tensor) -> nn.Embedding:
    """Descriptors `(T, Z)` that are not trained."""
    embedding: nn.Embedding = nn.Embedding.from_pretrained(descriptors)
    return embedding
