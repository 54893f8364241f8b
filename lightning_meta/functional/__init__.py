"""Pure functions on tensors: random draws, inner loops, the task map, prototypes."""

from lightning_meta.functional.inference import outside_inference_mode
from lightning_meta.functional.inner_loop import inner_loop
from lightning_meta.functional.prototypes import class_means, cosine_similarity, squared_euclidean
from lightning_meta.functional.task_map import TaskMap, task_map

__all__ = [
    "TaskMap",
    "class_means",
    "cosine_similarity",
    "inner_loop",
    "outside_inference_mode",
    "squared_euclidean",
    "task_map",
]
