"""Window attention against a loop over windows and heads written from the paper's formula."""

import pytest
import torch
from torch import nn

from medseg_kit.networks.window_attention import (
    BlockPlace,
    LinearProjection,
    WindowAttention,
    relative_position_index,
)


def attention(place, *, relative_position):
    layer = WindowAttention(
        place,
        LinearProjection(place.dim),
        nn.Linear(place.dim, place.dim),
        relative_position=relative_position,
    )
    if relative_position:
        nn.init.normal_(layer.position.relative_position_bias_table)
    return layer


def region(index, side, window, shift):
    """Which of the three bands of a shifted axis a (rolled) index lies in."""
    if index < side - window:
        return 0
    return 1 if index < side - shift else 2


def reference(layer, tokens):
    place = layer.place
    side, window, shift, heads = place.resolution, place.window, place.shift, place.num_heads
    size = place.dim // heads
    rolled = torch.roll(tokens, (-shift, -shift), (1, 2))
    result = torch.zeros_like(rolled)
    for top in range(0, side, window):
        for left in range(0, side, window):
            cells = [(top + i, left + j) for i in range(window) for j in range(window)]
            flat = torch.stack([rolled[:, r, c] for r, c in cells], 1)
            query, key, value = layer.projection.qkv(flat).chunk(3, -1)
            outputs = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                scores = query[..., part] @ key[..., part].transpose(1, 2) * size**-0.5
                scores = scores + added(layer, cells, head, side, window, shift)
                outputs.append(scores.softmax(-1) @ value[..., part])
            mixed = layer.output(torch.cat(outputs, -1))
            for k, (row, column) in enumerate(cells):
                result[:, row, column] = mixed[:, k]
    return torch.roll(result, (shift, shift), (1, 2))


def added(layer, cells, head, side, window, shift):
    scores = torch.zeros(len(cells), len(cells))
    for a, (row_a, column_a) in enumerate(cells):
        for b, (row_b, column_b) in enumerate(cells):
            if layer.position is not None:
                offset = (row_a - row_b + window - 1) * (2 * window - 1)
                offset += column_a - column_b + window - 1
                scores[a, b] += layer.position.relative_position_bias_table[offset, head]
            regions = [
                (region(r, side, window, shift), region(c, side, window, shift))
                for r, c in ((row_a, column_a), (row_b, column_b))
            ]
            if shift and regions[0] != regions[1]:
                scores[a, b] -= 100
    return scores


@pytest.mark.parametrize("relative_position", [False, True])
@pytest.mark.parametrize(("side", "window", "shift"), [(6, 3, 0), (6, 3, 1), (8, 4, 2), (3, 3, 0)])
def test_attention__compare_fused_and_plain(side, window, shift, relative_position):
    torch.manual_seed(0)
    place = BlockPlace(4, 2, side, window, shift, 0.0)
    layer = attention(place, relative_position=relative_position)
    tokens = torch.randn(2, side, side, 4)
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens), reference(layer, tokens))
    torch.testing.assert_close(layer(tokens), reference(layer, tokens))


def test_attention__gradient_reaches_the_bias_table():
    layer = attention(BlockPlace(4, 2, 6, 3, 1, 0.0), relative_position=True)
    layer(torch.randn(2, 6, 6, 4)).square().sum().backward()
    assert layer.position.relative_position_bias_table.grad.abs().sum() > 0


def test_state__holds_parameters_only():
    layer = attention(BlockPlace(4, 2, 6, 3, 1, 0.0), relative_position=True)
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}


def test_relative_position_index__two_by_two():
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert relative_position_index(2).tolist() == expected
