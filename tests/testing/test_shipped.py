"""What is shipped passes the tests that users inherit."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_meta.data import EpisodicDataModule
from lightning_meta.meta import MAML, Baseline, MetaModule, ProtoNet
from lightning_meta.multitask import CrossStitch, Independent, MixtureOfExperts, MultiHead, MultiTaskModule
from lightning_meta.nn import MLP, Conv4, ResNet12
from lightning_meta.sources import Sinusoid
from lightning_meta.testing import BackboneTests, EpisodicDataModuleTests, MetaModuleTests, MultiTaskModuleTests, toys
from lightning_meta.weightings import PCGrad


def conv4() -> Conv4:
    return Conv4(width=4, blocks=2)


class TestProtoNet(MetaModuleTests):
    def make(self) -> MetaModule:
        return ProtoNet(conv4())


class TestMAML(MetaModuleTests):
    def make(self) -> MetaModule:
        return MAML(conv4(), inner_lr=0.1, inner_steps=2, batch_norm="inductive")


class TestRecomputedMAML(MetaModuleTests):
    def make(self) -> MetaModule:
        return MAML(MLP(256, (8,)), inner_lr=0.1, inner_steps=3, recompute=True)


class TestRegression(MetaModuleTests):
    def make(self) -> MetaModule:
        return MAML(MLP(1, (8, 8)), inner_steps=2)

    def make_data(self) -> EpisodicDataModule:
        return EpisodicDataModule(Sinusoid(), shots=5, queries=5, meta_batch_size=4, val_tasks=4, test_tasks=4, seed=0)


class TestBaseline(MetaModuleTests):
    tolerance = 1e-9  # its batch statistics are those of each rank's share, see README

    def make(self) -> MetaModule:
        return Baseline(MLP(256, (8,)), head_steps=5)


class TestIndependent(MultiTaskModuleTests):
    def make(self) -> MultiTaskModule:
        return Independent(MLP(4, (8,)))


class TestMultiHead(MultiTaskModuleTests):
    def make(self) -> MultiTaskModule:
        return MultiHead(MLP(4, (8, 8)))


class TestPCGrad(MultiTaskModuleTests):
    def make(self) -> MultiTaskModule:
        return MultiHead(MLP(4, (8, 8)), weighting=PCGrad())


class TestCrossStitch(MultiTaskModuleTests):
    def make(self) -> MultiTaskModule:
        return CrossStitch(MLP(4, (8, 8)))


class TestMixtureOfExperts(MultiTaskModuleTests):
    def make(self) -> MultiTaskModule:
        return MixtureOfExperts(MLP(4, (8,)))


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


class TestTransformer(BackboneTests):
    input_shape = (5, 8)

    def make(self) -> nn.Module:
        return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten())  # with dropout


class TestRecurrent(BackboneTests):
    """`vmap` cannot run it."""

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
