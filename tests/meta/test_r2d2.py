"""R2D2 against scikit-learn's ridge regression and finite differences, and features of length 1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import normalize
from torch import Tensor, nn
from torch.func import vmap

from lightning_meta.batches import Examples
from lightning_meta.errors import UserError
from lightning_meta.functional import ridge, unit_length
from lightning_meta.meta import R2D2, ProtoNet
from lightning_meta.nn import MLP, Conv4
from tests.meta.oracles import IMAGES, KINDS, episodes, roughen, smooth_convolutions, task

VECTORS = KINDS["mlp"].spec


def r2d2(backbone: nn.Module | None = None, **options: Any) -> R2D2:
    torch.manual_seed(3)
    backbone = MLP(6, (8, 5)) if backbone is None else backbone
    module = R2D2(backbone, **{"episodes": VECTORS, **options}).double()
    roughen(module.backbone)
    with torch.no_grad():
        module.log_penalty.fill_(0.7)
        module.shift.fill_(0.3)
        module.scale.fill_(2.0)
    return module


@pytest.mark.parametrize("shots", [1, 2, 6], ids=["fewer examples than features", "about as many", "more"])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_head_is_the_ridge_regression_of_scikit_learn(shots: int, scaled: bool) -> None:
    module, batch = r2d2(scale_features=scaled), episodes(VECTORS, shots=shots)
    support, query = task(batch, 0)

    def of_numpy(x: Tensor) -> Any:
        features = module.backbone(x).detach().numpy()
        return normalize(features) if scaled else features

    peer = Ridge(alpha=np.exp(0.7), fit_intercept=False).fit(of_numpy(support.x), np.eye(3)[support.y])
    found = module.predict(module.adapt(support, 3), query.x).detach().numpy()
    np.testing.assert_allclose(found, 2 * peer.predict(of_numpy(query.x)) + 0.3, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_through_the_head_are_those_of_finite_differences(scaled: bool) -> None:
    """λ, α, β and all weights of the embedding are tested at once, along random directions."""
    module = r2d2(smooth_convolutions(), episodes=IMAGES, scale_features=scaled)
    batch = episodes(IMAGES)
    parameters = list(module.parameters())

    def loss() -> Tensor:
        return module.meta_batch_loss(batch).loss.mean()

    gradients = torch.autograd.grad(loss(), parameters)
    names = [name for name, _ in module.named_parameters()]
    assert gradients[names.index("log_penalty")] != 0
    assert gradients[names.index("scale")] != 0
    assert abs(gradients[names.index("shift")]) < 1e-12  # the same for all classes
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        at = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(d, alpha=step)
                at.append(loss())
                for p, d in zip(parameters, direction, strict=True):
                    p.sub_(d, alpha=step)
        expected = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
        torch.testing.assert_close((at[0] - at[1]) / 2e-5, expected, rtol=1e-6, atol=1e-8)


def test_both_forms_of_the_solution_are_one() -> None:
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.eye(6, dtype=torch.float64)[:, :2]
    penalty = torch.tensor(0.4, dtype=torch.float64)
    few = ridge(x, y, penalty)
    padded = ridge(torch.cat([x, torch.zeros(8, 9)]), torch.cat([y, torch.zeros(8, 2)]), penalty)  # adds nothing
    torch.testing.assert_close(padded, few, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(vmap(ridge, (0, 0, None))(x[None], y[None], penalty)[0], few, rtol=1e-12, atol=1e-12)


def test_half_precision_features_are_solved_in_float32() -> None:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    y, penalty = torch.eye(5), torch.tensor(1e-3)
    found = ridge(x, y, penalty.bfloat16())
    assert found.dtype == torch.float32
    expected = Ridge(alpha=float(penalty.bfloat16()), fit_intercept=False).fit(x.double().numpy(), y.numpy()).coef_.T
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_the_options_are_where_lambda_and_alpha_start() -> None:
    module = R2D2(MLP(6, (5,)), penalty=7.0, scale=3.0, episodes=VECTORS)
    assert math.exp(module.log_penalty.item()) == pytest.approx(7)
    assert module.scale.item() == 3
    assert {"log_penalty", "scale", "shift"} < {name for name, p in module.named_parameters() if p.requires_grad}
    for option in ("penalty", "scale"):
        with pytest.raises(UserError, match=f"{option}: a positive number is needed"):
            R2D2(MLP(6, (5,)), **{option: 0.0})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="scale_features: True or False is needed"):
        R2D2(MLP(6, (5,)), scale_features="no")
    with pytest.raises(UserError, match=r"width: one number for each of the 4 blocks is needed, got \[8, 8\]"):
        R2D2(Conv4(width=(8, 8)))


def test_features_of_length_one_make_euclidean_prototypes_ignore_length() -> None:
    """A user's case: pictures of one class in strong and in weak contrast."""
    identity = nn.Flatten()
    spec = VECTORS
    support = Examples(torch.eye(6)[[0, 1, 2]] + 0.1, torch.tensor([0, 1, 2]))
    x = torch.cat([9 * support.x, support.x / 50])
    plain, scaled = (ProtoNet(identity, episodes=spec, scale_features=s) for s in (False, True))
    logits = scaled.predict(scaled.adapt(support, 3), x)
    torch.testing.assert_close(logits[:3], logits[3:])
    assert logits.argmax(-1).tolist() == [0, 1, 2, 0, 1, 2]
    unlike = plain.predict(plain.adapt(support, 3), x)
    assert not torch.allclose(unlike[:3], unlike[3:])


def test_a_feature_of_zero_stays_zero_and_has_a_modest_gradient() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]], requires_grad=True)
    found = unit_length(x)
    torch.testing.assert_close(found[:2], torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    (gradient,) = torch.autograd.grad((found * torch.tensor([1.0, 2.0])).sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 10  # F.normalize gives 1e12
    normal = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit_length, (normal,))
