"""MAML (Finn et al. 2017): a network that learns a task by a few gradient steps."""

import lightning_meta as lm

STEPS = 5000


def build(domain):
    """The module for a domain."""
    if domain.images:
        return lm.MAML(domain.backbone(width=32), inner_lr=0.01, inner_steps=5, batch_norm="transductive")
    return lm.MAML(domain.backbone(), inner_lr=0.01, inner_steps=5)


def training(domain):
    """Many cheap tasks a step where inputs are no images."""
    return {} if domain.images else {"meta_batch_size": 25}
