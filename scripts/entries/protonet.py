"""Prototypical networks (Snell et al. 2017), trained with more classes in a task than tested with."""

import lightning_meta as lm

STEPS = 1000  # training steps in each domain


def build(domain):
    """The module for a domain, or None if the method does not apply to it."""
    return None if domain.regression else lm.ProtoNet(domain.backbone())


def training(domain):
    """Options of the training tasks that differ from those of the test tasks."""
    return {"ways": 20, "queries": 5, "meta_batch_size": 1}
