"""Winograd's matrices in exact fractions: that they convolve, what they cost, and that the shader has the same."""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import shaderfusion.kernels.optimized.winograd_conv as winograd
from shaderfusion.errors import ShapeError
from shaderfusion.kernels import reference
from shaderfusion.kernels.optimized.winograd_conv import TILE_SIZES, Matrix, winograd_costs, winograd_matrices

SHADER = Path(winograd.__file__).with_suffix(".wgsl").read_text("utf-8")


def times(matrix: Matrix, vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), start=Fraction(0)) for row in matrix]


def unit(size: int, place: int) -> list[Fraction]:
    return [Fraction(i == place) for i in range(size)]


@pytest.mark.parametrize("m", TILE_SIZES)
def test_correlation_is_exact(m: int) -> None:
    # Both sides are bilinear, so the unit vectors prove it for all d and g.
    AT, G, BT = winograd_matrices(m)
    assert (len(AT), len(G), len(BT)) == (m, m + 2, m + 2)
    for k in range(m + 2):
        for tap in range(3):
            d, g = unit(m + 2, k), unit(3, tap)
            products = [u * v for u, v in zip(times(G, g), times(BT, d), strict=True)]
            assert times(AT, products) == [sum(d[y + i] * g[i] for i in range(3)) for y in range(m)]


@pytest.mark.parametrize("m", TILE_SIZES)
def test_rows_are_scaled_by_powers_of_2(m: int) -> None:
    # So max |V| <= 4 max |x| and max |U| <= max |g|: f16 cannot overflow where the direct convolution does not.
    matrices = winograd_matrices(m)
    for matrix, limit in ((matrices.BT, 2), (matrices.G, 1)):
        assert all(limit / 2 < sum(map(abs, row)) <= limit for row in matrix)


@pytest.mark.parametrize(("m", "bound"), [(2, 1.67), (4, 4.79), (6, 20.7), (8, 122)])
def test_amplification(m: int, bound: float) -> None:
    # The factor by which tile and transforms amplify independent relative errors of U, V and M; rows' scales cancel.
    AT, G, BT = (np.array(matrix, np.float64) for matrix in winograd_matrices(m))
    variance = (BT**2).sum(axis=1) * (G**2).sum(axis=1) / 3
    assert 0.98 * bound < (AT**2 @ variance).mean() <= bound  # squared for two dimensions, root for the deviation


def wgsl_table(name: str, matrix: Matrix) -> str:
    """The matrix as the shader writes it, of 9 digits, which give back every f32: A and B exactly, G rounded."""
    texts = [[f"{float(value):.9g}" for value in row] for row in matrix]
    for row, row_texts in zip(matrix, texts, strict=True):
        values = row if name != "G" else [np.float32(float(value)) for value in row]
        assert [float(np.float32(text)) for text in row_texts] == list(values)
    rows = [", ".join(text if "." in text else f"{text}.0" for text in row) for row in texts]
    return f"{name} = array(\n" + "".join(f"    array({row}),\n" for row in rows) + ");\n"


@pytest.mark.parametrize("m", TILE_SIZES)
def test_reference_has_the_same(m: int) -> None:
    # By another route: B^T solves the equation that makes it a convolution.
    for matrix, specified in zip(winograd_matrices(m), reference._winograd_matrices(m), strict=True):
        np.testing.assert_allclose(np.array(matrix, np.float64), specified, atol=1e-11)


@pytest.mark.parametrize("m", TILE_SIZES)
def test_shader_has_the_same(m: int) -> None:
    matrices = winograd_matrices(m)
    block = re.split("#(?:elif|endif)", re.split(rf"#(?:ifdef|elif) M_{m}\n", SHADER)[1])[0]
    assert block == "".join(f"const {wgsl_table(name, getattr(matrices, name))}" for name in ("AT", "G", "BT"))


@pytest.mark.parametrize(
    ("m", "saved", "intermediate", "weights"),
    [(2, 2.25, 4.00, 1.78), (4, 4.00, 2.25, 4.00), (6, 5.06, 1.78, 7.11), (8, 5.76, 1.56, 11.11)],
)
def test_costs(m: int, saved: float, intermediate: float, weights: float) -> None:
    assert tuple(round(value, 2) for value in winograd_costs(m)) == (saved, intermediate, weights)


@pytest.mark.parametrize("m", TILE_SIZES)
def test_filters(m: int) -> None:
    filters = np.random.default_rng(0).standard_normal((3, 3, 2, 5))
    G = np.array(winograd_matrices(m).G, np.float64)
    U = reference.winograd_filters(filters, m=m)
    for c, o in np.ndindex(2, 5):
        np.testing.assert_allclose(U[:, c, o].reshape(m + 2, m + 2), G @ filters[:, :, c, o] @ G.T)


def test_errors() -> None:
    with pytest.raises(ShapeError, match=r"winograd_conv: m \(=3\) must be one of 2, 4, 6, 8"):
        winograd_matrices(3)
