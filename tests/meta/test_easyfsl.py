"""The same numbers as easyfsl 1.5.0 on the same features; where it is not installed, these tests are skipped.

pip install --no-deps easyfsl==1.5.0 torchvision==0.16.2 loguru typer
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_meta as lm
from lightning_meta.batches import Examples
from lightning_meta.functional.prototypes import squared_euclidean
from lightning_meta.meta.bd_cspn import rectified, shifted
from lightning_meta.meta.laplacian_shot import bound_updates, nearest_neighbours
from lightning_meta.meta.pt_map import EPSILON, transport_and_means
from lightning_meta.tasks import EpisodeSpec

pytestmark = pytest.mark.filterwarnings("ignore")  # of its import of torchvision
easyfsl: Any = pytest.importorskip("easyfsl.methods", exc_type=ImportError)

SPEC = EpisodeSpec("classification", (16,), 5, 10)


def one_task(seed: int, shots: int, queries: int = 15, noise: float = 0.5) -> tuple[Examples, Tensor]:
    """Features that are not negative, of length 1."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(5, 16, generator=generator, dtype=torch.float64)
    y = torch.arange(5).repeat_interleave(shots + queries)
    x = centres[y] + noise * torch.rand(len(y), 16, generator=generator, dtype=torch.float64)
    x = F.normalize(x, dim=-1).view(5, shots + queries, 16)
    return Examples(x[:, :shots].flatten(0, 1), torch.arange(5).repeat_interleave(shots)), x[:, shots:].flatten(0, 1)


def of_peer(method: Any, support: Examples, query: Tensor) -> Tensor:
    with torch.no_grad():
        method.process_support_set(*support)
        found: Tensor = method(query)
    return found


@pytest.mark.parametrize("shots", [1, 5])
def test_pt_map_has_its_plan(shots: int) -> None:
    """MAP on features that were transformed: easyfsl neither scales nor centres after the power transform."""
    for seed in range(5):
        support, query = one_task(seed, shots)
        peer = easyfsl.PTMAP(fine_tuning_steps=10, fine_tuning_lr=0.2, lambda_regularization=10.0, power_factor=1.0)
        expected = of_peer(peer, support, query)
        members = F.one_hot(support.y, 5)
        found = transport_and_means(support.x + EPSILON, members, query + EPSILON, 10, 0.2, 10.0)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)  # it stops at a change of 1e-6


@pytest.mark.parametrize("shots", [1, 5])
def test_bd_cspn_has_its_prototypes(shots: int) -> None:
    """In easyfsl ε is 1 and queries are not shifted, so accuracies agree, but logits do not."""
    module = lm.BDCSPN(nn.Identity(), scale=1.0, episodes=SPEC)
    right, of_theirs = [], []
    for seed in range(20):
        support, query = one_task(seed, shots, noise=0.9)
        peer = easyfsl.BDCSPN()
        predicted = of_peer(peer, support, query).argmax(-1)
        found = rectified(shifted(query, support.x), support.x, F.one_hot(support.y, 5), 1.0)
        torch.testing.assert_close(found, peer.prototypes.double(), atol=1e-7, rtol=0)
        y = torch.arange(5).repeat_interleave(15)
        of_theirs.append(float((predicted == y).double().mean()))
        right.append(float((module.predict(module.adapt(support, 5), query).argmax(-1) == y).double().mean()))
    assert sum(right) / 20 > sum(of_theirs) / 20 - 0.005


@pytest.mark.parametrize("shots", [1, 5])
def test_laplacian_shot_has_its_assignments(shots: int) -> None:
    """As in easyfsl, queries are not shifted, and affinities are in float32."""
    for seed in range(5):
        support, query = one_task(seed, shots)
        support, query = support._replace(x=support.x.float()), query.float()
        expected = of_peer(easyfsl.LaplacianShot(), support, query)
        prototypes = rectified(shifted(query, support.x), support.x, F.one_hot(support.y, 5), 1.0)
        found = bound_updates(squared_euclidean(query, prototypes), nearest_neighbours(query, 2), 0.7, 20)
        torch.testing.assert_close(found.softmax(-1), expected, atol=1e-3, rtol=0)  # it stops at 1e-6 of its bound


@pytest.mark.parametrize("shots", [1, 5])
def test_feat_has_its_prototypes(shots: int) -> None:
    """Both add no biases to queries, keys and values; easyfsl's scores are distances, ours squared distances."""
    from easyfsl.modules import MultiHeadAttention

    torch.manual_seed(0)
    module = lm.FEAT(nn.Flatten(), temperature=1.0, episodes=SPEC).double()
    attention = MultiHeadAttention(1, 16, 16, 16).double().eval()
    pairs = {"w_qs": module.query, "w_ks": module.key, "w_vs": module.value, "fc": module.output}
    with torch.no_grad():
        attention.layer_norm.weight.copy_(torch.rand(16))
        for theirs, ours in {**pairs, "layer_norm": module.norm}.items():
            ours.load_state_dict(getattr(attention, theirs).state_dict())
    for seed in range(5):
        support, query = one_task(seed, shots)
        expected = of_peer(easyfsl.FEAT(attention_module=attention), support, query)
        found = module.predict(module.adapt(support, 5), query)
        torch.testing.assert_close(-(-found).sqrt(), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("shots", [1, 5])
def test_matching_networks_without_context_have_its_attention(shots: int) -> None:
    """easyfsl does not normalise queries, which have length 1 here, and adds 1e-6 to probabilities."""

    class NoContext(nn.Module):
        def forward(self, x: Tensor, state: object = None) -> tuple[Tensor, Tensor]:
            zeros = x.new_zeros(*x.shape[:-1], 16 if state is not None else 32)
            return zeros, zeros

    module = lm.MatchingNet(nn.Identity(), episodes=SPEC)
    for seed in range(5):
        support, query = one_task(seed, shots)
        peer = easyfsl.MatchingNetworks(feature_dimension=16, support_encoder=NoContext(), query_encoder=NoContext())
        # In its own way of counting labels; it makes float32 ones of them.
        peer.process_support_set(*support)
        peer.one_hot_support_labels = peer.one_hot_support_labels.double()
        with torch.no_grad():
            expected = peer(query).exp() - 1e-6
        found = module.predict(module.adapt(support, 5), query).exp()
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("shots", [1, 5])
def test_relation_networks_have_its_scores(shots: int) -> None:
    """Both use the same relation module, and both average the features of a class."""
    torch.manual_seed(0)
    module = lm.RelationNet(nn.Flatten(), channels=4, width=3, episodes=SPEC).double().eval()
    relation = nn.Sequential(module.relation, nn.Sigmoid())
    as_maps = nn.Unflatten(1, (4, 2, 2))
    for seed in range(5):
        support, query = one_task(seed, shots)
        peer = easyfsl.RelationNetworks(as_maps, feature_dimension=4, relation_module=relation)
        expected = of_peer(peer, support, query)
        found = module.predict(module.adapt(support, 5), query).exp()
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("shots", [1, 5])
def test_simple_shot_has_its_scores(shots: int) -> None:
    """easyfsl uses cosines, which order classes like distances if prototypes have length 1, as with one shot."""
    torch.manual_seed(0)
    module = lm.SimpleShot(nn.Flatten(), episodes=SPEC).double()
    agreed = []
    for seed in range(5):
        support, query = one_task(seed, shots)
        module.centre.copy_(query.mean(0))
        peer = easyfsl.SimpleShot(feature_centering=module.centre, feature_normalization=2)
        agreed += [
            (of_peer(peer, support, query).argmax(-1) == module.predict(module.adapt(support, 5), query).argmax(-1))
        ]
    assert torch.cat(agreed).double().mean() >= (1 if shots == 1 else 0.9)


@pytest.mark.parametrize("shots", [1, 5])
def test_tim_classifies_as_well(shots: int) -> None:
    """easyfsl uses cosines and gradient descent instead of alternation, so only accuracies agree."""
    module = lm.TIM(nn.Identity(), episodes=SPEC)
    right, of_theirs = [], []
    for seed in range(20):
        support, query = one_task(seed, shots, noise=0.9)
        y = torch.arange(5).repeat_interleave(15)
        peer = easyfsl.TIM(fine_tuning_steps=200, fine_tuning_lr=1e-3, cross_entropy_weight=0.1, temperature=15.0)
        support_parts = (support.x, support.y)
        peer.process_support_set(*support_parts)
        of_theirs.append(float((peer(query).argmax(-1) == y).double().mean()))
        right.append(float((module.predict(module.adapt(support, 5), query).argmax(-1) == y).double().mean()))
    assert sum(right) / 20 > sum(of_theirs) / 20 - 0.02
