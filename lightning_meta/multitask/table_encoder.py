"""Encoding of the rows of a table as inputs, with tensor operations that can be exported."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from lightning_meta.multitask.exported_rows import MISSING, UNSEEN
from lightning_meta.sources.scaling import EDGE, ends_of
from lightning_meta.tasks.table import NumberFeature, TableSpec, TextFeature

# Wichura, Algorithm AS 241: PPND16, Applied Statistics 37 (1988). Coefficients of numerators and denominators, highest
# power first.
CENTRE = (
    (
        *(2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457),
        *(13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    ),
    (
        *(5226.495278852854561, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867),
        *(5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
    ),
)
TAIL = (
    (
        *(7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258),
        *(3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    ),
    (
        *(1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459),
        *(0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
    ),
)


class TableEncoder(nn.Module):
    """Converts raw numbers and codes of texts to inputs, with the same result as `sources.table_features.encode`.

    Args:
        spec: The columns of the table, with the statistics of the training rows.

    Attributes:
        numbers: The numeric features, in the order of their columns in `forward`.
        texts: The text features, in the order of their columns in `forward`.
    """

    mean: Tensor
    scale: Tensor
    missing_input: Tensor
    constant: Tensor
    column: Tensor
    place: Tensor
    order: Tensor

    def __init__(self, spec: TableSpec) -> None:
        super().__init__()
        self.numbers = [f for f in spec.features if isinstance(f, NumberFeature)]
        self.texts = [f for f in spec.features if isinstance(f, TextFeature)]

        def of_numbers(name: str) -> Tensor:
            return torch.tensor([getattr(f, name) for f in self.numbers], dtype=torch.float64)

        for name in ("mean", "scale", "missing_input"):
            self.register_buffer(name, of_numbers(name))
        self.register_buffer("constant", of_numbers("constant") > 0)
        for i, feature in enumerate(self.numbers):
            if feature.quantiles:
                self.register_buffer(f"quantiles_{i}", torch.tensor(feature.quantiles, dtype=torch.float64))
                # By NumPy, for the same last digits as in scikit-learn; a buffer, to be on the device of the rows.
                self.register_buffer(f"levels_{i}", torch.from_numpy(np.linspace(0, 1, len(feature.quantiles))))
        one_hot = [(i, feature) for i, feature in enumerate(self.texts) if not feature.coded]
        pairs = [(i, place) for i, feature in one_hot for place in range(len(feature.texts))]
        self.register_buffer("column", torch.tensor([i for i, _ in pairs], dtype=torch.int64))
        self.register_buffer("place", torch.tensor([place for _, place in pairs], dtype=torch.int64))
        self.register_buffer("order", torch.tensor(self._order(spec), dtype=torch.int64))

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Encode rows.

        Args:
            numbers: Numbers minus the offset of their feature, `(M, numbers)` float64, NaN if missing.
            codes: Index of each text in the `texts` of its feature, `(M, texts)` int64; `MISSING`, or
                `exported_rows.UNSEEN` for a text that no training row has.

        Returns:
            Inputs of the network, `(M, D)` float32.
        """
        missing = numbers.isnan()
        units = (numbers - self.mean) / self.scale
        if any(feature.quantiles for feature in self.numbers):
            columns = [
                self._share(i, numbers[:, i]) if f.quantiles else units[:, i] for i, f in enumerate(self.numbers)
            ]
            units = torch.stack(columns, 1)
        units = torch.where(missing | self.constant, self.missing_input, units)
        one_hot = codes.index_select(1, self.column).eq(self.place)
        coded = codes - UNSEEN  # 0 for an unseen text, 1 for a missing one, 2 for the first
        parts = [units.float(), missing.float(), one_hot.float(), codes.eq(MISSING).float(), coded.float()]
        return torch.cat(parts, 1).index_select(1, self.order)

    def _order(self, spec: TableSpec) -> list[int]:
        """The index of each of the D inputs in the concatenation in `forward`.

        The concatenation has scaled numbers, missing numbers, one-hot texts, missing texts and codes.
        """
        numbers, ones = len(self.numbers), len(self.column)
        number, text, one, order = 0, 0, 2 * numbers, list[int]()
        for feature in spec.features:
            if isinstance(feature, NumberFeature):
                order += [number, *([numbers + number] if feature.indicator else [])]
                number += 1
            else:
                if feature.coded:
                    order.append(2 * numbers + ones + len(self.texts) + text)
                else:
                    order += [*range(one, one + len(feature.texts))]
                    order += [2 * numbers + ones + text] if feature.indicator else []
                    one += len(feature.texts)
                text += 1
        return order

    def _share(self, i: int, x: Tensor) -> Tensor:
        """The share of training numbers below x, `(M,)`, or Φ⁻¹ of it: `sources.scaling.scaled` without `np.interp`.

        Args:
            i: Index of the numeric feature.
            x: Numbers `(M,)`.
        """
        quantiles: Tensor = getattr(self, f"quantiles_{i}")
        levels: Tensor = getattr(self, f"levels_{i}")
        count, normal = len(quantiles), self.numbers[i].normal
        # The mean of interpolating from below and from above gives repeated quantiles their middle level. `up` is the
        # last quantile that is at most x, `down` the first that is at least x.
        slopes = levels.diff() / quantiles.diff()  # infinite between equal quantiles, between which no x lies
        up = ((quantiles <= x.unsqueeze(1)).sum(1) - 1).clamp(0, count - 2)
        down = (quantiles < x.unsqueeze(1)).sum(1).clamp(1, count - 1)
        from_below = levels[up] + (x - quantiles[up]) * slopes[up]
        from_above = levels[down] - (quantiles[down] - x) * slopes[down - 1]
        low, high = ends_of(self.numbers[i])
        shares = torch.where(x >= high, 1.0, (from_below + from_above) / 2)
        shares = torch.where(x <= low, 0.0, shares)
        return normal_quantile(shares.clamp(EDGE, 1 - EDGE)) if normal else shares


def normal_quantile(p: Tensor) -> Tensor:
    """Compute Φ⁻¹(p) to 16 digits with operators of ONNX, for p in [10⁻¹¹, 1 − 10⁻¹¹] (Wichura's AS 241).

    Args:
        p: Probabilities, float64.
    """
    q = p - 0.5
    # The argument is 0.425² − q² in the centre, |q| <= 0.425, and √(−ln min(p, 1 − p)) − 1.6 in the tails.
    centre = 0.180625 - q * q
    tail = torch.minimum(p, 1 - p).clamp_min(torch.finfo(torch.float64).tiny).log().neg().sqrt() - 1.6
    return torch.where(q.abs() <= 0.425, q * _ratio(CENTRE, centre), q.sign() * _ratio(TAIL, tail))


def _ratio(polynomials: tuple[tuple[float, ...], tuple[float, ...]], r: Tensor) -> Tensor:
    """Evaluate the ratio of two polynomials at r by Horner's method."""
    numerator, denominator = (torch.full_like(r, coefficients[0]) for coefficients in polynomials)
    for above, below in zip(*(coefficients[1:] for coefficients in polynomials), strict=True):
        numerator, denominator = numerator * r + above, denominator * r + below
    return numerator / denominator
