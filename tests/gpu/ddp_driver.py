"""Trains and evaluates on one device, by one process, by NCCL alone, or by two ranks that share it over gloo.

    python -m tests.gpu.ddp_driver FOLDER MODE_DEVICE_PRECISION

Every rank writes `rank_<r>.pt` in FOLDER; `tests/gpu/test_ddp.py` compares them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy

from lightning_meta.multitask import MultiHead
from lightning_meta.nn import MLP
from tests.ddp_driver import STEPS, data, modules, sgd
from tests.devices.toys import Tasks, multi_task
from tests.gpu.card import accelerator
from tests.nn.recorder import recorded

NAMES = ("protonet", "protonet_inductive", "maml", "maml_inductive")
GRAPHS = ("protonet_graph", "maml_graph")  # the same, by graphs


class Shared(DDPStrategy):
    """Two ranks on one device. NCCL refuses that; gloo moves tensors of CUDA by way of the host."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(parallel_devices=[device, device], process_group_backend="gloo")

    def setup_distributed(self) -> None:
        """Set up the group without `device_id`, with which torch would create its own backend for CUDA."""
        reset_seed()
        self.set_world_ranks()
        environment = self.cluster_environment
        assert environment is not None
        if torch.distributed.is_initialized():
            return
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        torch.distributed.init_process_group("gloo", rank=environment.global_rank(), world_size=2)


def trainer(mode: str, device: torch.device, precision: Any, folder: Path, **options: Any) -> Trainer:
    strategy: dict[str, Any] = {"one": "auto", "nccl": "ddp", "gloo": Shared(device)}
    return Trainer(
        accelerator=accelerator(device),
        devices=2 if mode == "gloo" and device.type == "cpu" else 1,
        strategy=strategy[mode],
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )


def main(folder: Path, mode: str, where: str, precision: str) -> None:
    device = torch.device("cuda", 0) if where == "cuda" else torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False  # its rounding depends on how many examples a rank has
    noted: dict[str, Any] = {}
    for name in (*NAMES, *GRAPHS):
        module = modules()[name.removesuffix("_graph")]
        if name in GRAPHS:
            module.graph = "auto"
            module = module if where == "cuda" else recorded(module)
        runs = trainer(mode, device, precision, folder, max_steps=STEPS)
        runs.fit(module, datamodule=data())
        (tested,) = runs.test(module, datamodule=data(), verbose=False)
        noted[name] = {"state": on_the_cpu(module), "test": tested, "device": str(runs.strategy.root_device)}
        noted[name]["backend"] = torch.distributed.get_backend() if torch.distributed.is_initialized() else None
        noted[name]["world"] = runs.world_size
        noted[name]["replays"] = module._graphs.replays
    seed_everything(0, verbose=False)
    several = MultiHead(MLP(4, (8,)), optimizer=sgd)
    runs = trainer(mode, device, precision, folder, max_steps=STEPS)
    runs.fit(several, datamodule=multi_task(Tasks("missing labels"), batch_size=8))
    noted["multi_head"] = {"state": on_the_cpu(several)}
    torch.save(noted, folder / f"rank_{os.environ.get('LOCAL_RANK', '0')}.pt")


def on_the_cpu(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in module.state_dict().items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2].split("_"))
