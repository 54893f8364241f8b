"""The shipped classes pass the tests that users inherit."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from torchjd.aggregation import GradVac

from lightning_meta.data import EpisodicDataModule
from lightning_meta.meta import MAML, InContextTransformer, MetaModule
from lightning_meta.multitask import MultiHead, MultiTaskModule
from lightning_meta.nn import MLP, ChannelNormalized, Conv4, ResNet12, TabularMLP
from lightning_meta.sources import Sinusoid
from lightning_meta.testing import BackboneTests, EpisodicDataModuleTests, MetaModuleTests, MultiTaskModuleTests, toys
from lightning_meta.weightings import DBMTL, FAMO, PCGrad, TorchJD
from tests.methods import META, MULTI_TASK, OF_SINES, conv4, sines


def conformance(name: str) -> type:
    """The tests of a shipped method, over its row in `tests/methods.py`."""
    base, make = (MetaModuleTests, META[name]) if name in META else (MultiTaskModuleTests, MULTI_TASK[name])
    # Baseline's batch statistics are those of each rank's share, see README.
    tolerance = {"tolerance": 1e-9} if name == "Baseline" else {}
    data = {"make_data": lambda self: sines()} if name in OF_SINES else {}
    return type(f"Test{name}", (base,), {"make": lambda self: make(), "__module__": __name__, **tolerance, **data})


for _name in (*META, *MULTI_TASK):
    globals()[f"Test{_name}"] = conformance(_name)


class TestRecomputedMAML(MetaModuleTests):
    def make(self) -> MetaModule:
        return MAML(MLP(256, (8,)), inner_lr=0.1, inner_steps=3, recompute=True)


class TestRegression(MetaModuleTests):
    def make(self) -> MetaModule:
        return MAML(MLP(1, (8, 8)), inner_steps=2)

    def make_data(self) -> EpisodicDataModule:
        return EpisodicDataModule(Sinusoid(), shots=5, queries=5, meta_batch_size=4, val_tasks=4, test_tasks=4, seed=0)


@pytest.mark.slow
class TestRegressionInContext(MetaModuleTests):
    def make(self) -> MetaModule:
        return InContextTransformer(MLP(1, (8,)), width=8, layers=2, heads=2, hidden=8)

    def make_data(self) -> EpisodicDataModule:
        return sines()


class TestPCGrad(MultiTaskModuleTests):
    def make(self) -> MultiTaskModule:
        return MultiHead(MLP(4, (8, 8)), weighting=PCGrad())


class TestFAMO(MultiTaskModuleTests):
    """A weighting that computes the losses of the batch again after the step."""

    def make(self) -> MultiTaskModule:
        return MultiHead(MLP(4, (8, 8)), head_hidden=(8,), weighting=FAMO())


class TestDBMTL(MultiTaskModuleTests):
    """A weighting whose state has the size of the gradients."""

    def make(self) -> MultiTaskModule:
        return MultiHead(MLP(4, (8, 8)), weighting=DBMTL())


class TestTorchJD(MultiTaskModuleTests):
    """torchjd keeps the state."""

    def make(self) -> MultiTaskModule:
        return MultiHead(MLP(4, (8, 8)), weighting=TorchJD(GradVac()))


class TestConv4(BackboneTests):
    def make(self) -> nn.Module:
        return conv4()


class TestResNet12(BackboneTests):
    def make(self) -> nn.Module:
        return ResNet12(in_channels=1, widths=(4, 4, 4, 4))


class TestMLP(BackboneTests):
    input_shape = (5,)

    def make(self) -> nn.Module:
        return MLP(5, (8, 8))


class TestTabularMLP(BackboneTests):
    input_shape = (5,)

    def make(self) -> nn.Module:
        return TabularMLP((8, 8), columns=(0, 4, 0, 0, 7))


class TestResNet12WithDropBlock(BackboneTests):
    def make(self) -> nn.Module:
        return ResNet12(1, (2, 2, 2), dropout=0.3, drop_block=2)


class TestChannelNormalized(BackboneTests):
    def make(self) -> nn.Module:
        return ChannelNormalized(Conv4(1, 4, blocks=2), [0.5], [0.25])


class TestTransformer(BackboneTests):
    input_shape = (5, 8)

    def make(self) -> nn.Module:
        return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten())  # with dropout


class TestRecurrent(BackboneTests):
    """A recurrent network, which `vmap` cannot run."""

    input_shape = (5, 8)

    def make(self) -> nn.Module:
        return _Last(nn.GRU(8, 4, batch_first=True))


class _Last(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x)[0][:, -1]
        return outputs


class TestTorchsOwnNormalisation(BackboneTests):
    def make(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten())


class TestPictures(EpisodicDataModuleTests):
    def make(self) -> EpisodicDataModule:
        return toys.pictures()


class TestSinusoid(EpisodicDataModuleTests):
    def make(self) -> EpisodicDataModule:
        return EpisodicDataModule(Sinusoid(), shots=5, queries=5, meta_batch_size=4)
