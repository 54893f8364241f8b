"""Keep the weights of a module that a Trainer converts to another precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule


@contextmanager
def keeping_weights(module: LightningModule) -> Iterator[None]:
    """Restore weights and buffers that a Trainer with a `precision` such as `bf16-true` converts in place.

    Args:
        module: The module that is tested within the context.
    """
    dtype = module.dtype
    weights = [(parameter, parameter.data) for parameter in module.parameters()]
    buffers = [(part, name, b) for part in module.modules() for name, b in part._buffers.items() if b is not None]
    try:
        yield
    finally:
        if module.dtype != dtype:
            module.to(dtype)
            for parameter, data in weights:
                parameter.data = data.to(parameter.device)
            for part, name, buffer in buffers:
                part._buffers[name] = buffer.to(module.device)
