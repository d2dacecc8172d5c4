"""CoWPro's episodes: losses, edge cases, and that a few steps learn a synthetic task."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from medseg_kit.losses.fused_dice import edge_dice, spatial_dice
from medseg_kit.methods.cowpro import CoWProStep
from medseg_kit.networks.dilated_resnet import DilatedResNet
from medseg_kit.networks.one_shot import OneShotNetwork
from medseg_kit.networks.prototypes import PrototypeClassifier

SIZE = 64


def step(**options) -> CoWProStep:
    return CoWProStep(PrototypeClassifier(), total_steps=10, **options)


@pytest.fixture
def engine() -> SimpleNamespace:
    torch.manual_seed(0)
    encoder = DilatedResNet(18, widen_factor=0.125, out_channels=32)
    return SimpleNamespace(network=OneShotNetwork(encoder, PrototypeClassifier(), ["organ"]))


def episodes(number: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return supports, then queries: a bright square on noise, moved a little."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.3 * torch.randn(2 * number, 1, SIZE, SIZE, generator=generator)
    mask = torch.zeros(2 * number, 1, SIZE, SIZE, dtype=torch.uint8)
    for index in range(2 * number):
        row, column = torch.randint(4, 24, (2,), generator=generator).tolist()
        mask[index, :, row : row + 32, column : column + 32] = 1
    return {"image": image + 2 * mask, "label": mask}


def test_losses__are_those_of_the_paper(engine):
    plain = step().losses(engine, episodes(2))[1]
    assert set(plain) == {"query", "alignment"}
    logits, fused = step(spatial_weight=1.0, edge_weight=0.5).losses(engine, episodes(2))
    assert set(fused) == {"query", "alignment", "spatial", "edge"}
    assert logits.shape == (2, 2, SIZE, SIZE)
    assert 0 <= float(fused["edge"].detach()) <= 0.5
    for loss in fused.values():
        (gradient,) = torch.autograd.grad(
            loss, engine.network.encoder.projection.weight, retain_graph=True
        )
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0


def by_hand(query, support, mask):
    """Return background and foreground scores ``(2, h, w)`` by prototypes of 4 x 4 cells."""
    scores = []
    for inside in (1 - mask, mask):
        cells = [
            support[:, row : row + 4, column : column + 4].mean((1, 2))
            for row in range(0, 16, 4)
            for column in range(0, 16, 4)
            if inside[row : row + 4, column : column + 4].mean() > 0.95
        ]
        if inside is mask or not cells:
            cells.append((support * inside).sum((1, 2)) / inside.sum())
        pixels, points = (
            functional.normalize(vectors - vectors.mean(0), dim=0)
            for vectors in (query.flatten(1), torch.stack(cells, dim=1))
        )
        similarity = 20 * pixels.T @ points
        scores.append((similarity.softmax(1) * similarity).sum(1).view(16, 16))
    return torch.stack(scores)


def test_losses__written_out_for_one_episode():
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(2, 16, 16)
    masks[0, 4:14, 3:12], masks[1, 2:11, 5:15] = 1, 1
    masks[0, 5, 5] = 0  # leaves 15 of 16 pixels of a cell
    features = torch.randn(2, 6, 16, 16, generator=generator)
    features[:, :2] += 3 * masks[:, None]
    support, query = features
    large = masks.repeat_interleave(2, 1).repeat_interleave(2, 2)
    batch = {"image": large[:, None], "label": large[:, None].to(torch.uint8)}
    engine = SimpleNamespace(network=lambda _: {"features": features})
    logits, losses = step(spatial_weight=0.5, edge_weight=2.0).losses(engine, batch)

    def enlarged(small):
        return functional.interpolate(small[None], (32, 32), mode="bilinear")

    answer = by_hand(query, support, masks[0])
    back = by_hand(support, query, answer.argmax(0).float())
    entropy, weights = functional.cross_entropy, torch.tensor([0.05, 1.0])
    found = enlarged(answer).softmax(1)[:, 1]
    torch.testing.assert_close(logits, enlarged(answer), atol=1e-4, rtol=1e-4)
    expected = {
        "query": entropy(enlarged(answer), large[1:].long(), weights),
        "alignment": entropy(enlarged(back), large[:1].long()),
        "spatial": 0.5 * spatial_dice(found, large[1:]).mean(),
        "edge": 2.0 * edge_dice(found, large[1:]).mean(),
    }
    torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-4)


def test_losses__logits_of_the_papers_features():
    features = torch.randn(2, 256, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 256, 256, dtype=torch.uint8)
    mask[..., 64:192, 64:192] = 1
    engine = SimpleNamespace(network=lambda _: {"features": features})
    logits, _ = step().losses(engine, {"image": torch.zeros(2, 3, 256, 256), "label": mask})
    assert logits.shape == (1, 2, 256, 256)


def test_losses__soft_tversky_weighs_what_is_missed(engine):
    """Register A18: CoWPro's term, on probabilities, so that it can train."""
    losses = step(tversky_weight=0.5).losses(engine, episodes(2))[1]
    (gradient,) = torch.autograd.grad(
        losses["tversky"], engine.network.encoder.projection.weight, retain_graph=True
    )
    assert 0 < float(losses["tversky"].detach()) < 0.5
    assert gradient.abs().sum() > 0
    target = torch.zeros(1, 1, 4, 4)
    target[..., :2] = 1
    tversky, more, less = step().tversky, torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    less[..., :1] = 1
    assert float(tversky(more, target)) == pytest.approx(1 - 8 / (8 + 0.3 * 8), abs=1e-4)
    assert float(tversky(less, target)) == pytest.approx(1 - 4 / (4 + 0.7 * 4), abs=1e-4)


def test_losses__of_a_batch_are_the_mean_of_its_episodes(engine):
    engine.network.encoder.eval()  # each episode is normalised alone
    batch = episodes(3)
    together = step(spatial_weight=1, edge_weight=1).losses(engine, batch)[1]
    alone = []
    for index in range(3):
        pair = {key: value[[index, 3 + index]] for key, value in batch.items()}
        alone.append(step(spatial_weight=1, edge_weight=1).losses(engine, pair)[1])
    for name, loss in together.items():
        mean = torch.stack([losses[name] for losses in alone]).mean()
        torch.testing.assert_close(loss, mean, atol=1e-5, rtol=1e-5)


def test_losses__empty_support_does_not_count(engine):
    engine.network.encoder.eval()
    batch = episodes(2)
    batch["label"][0] = 0
    losses = step().losses(engine, batch)[1]
    pair = {key: value[[1, 3]] for key, value in batch.items()}
    for name, loss in step().losses(engine, pair)[1].items():
        torch.testing.assert_close(losses[name], loss, atol=1e-5, rtol=1e-5)
    batch["label"][:] = 0
    assert all(float(x.detach()) == 0 for x in step().losses(engine, batch)[1].values())


def test_alignment__without_an_answer_is_0_and_counted():
    class Blind(PrototypeClassifier):
        """Never finds anything."""

        def score(self, query, prototypes, valid=None):
            scores = super().score(query, prototypes, valid)
            self.calls = getattr(self, "calls", 0) + 1
            return scores - 100 if self.calls % 2 == 0 else scores

    torch.manual_seed(0)
    encoder = DilatedResNet(18, widen_factor=0.125, out_channels=32)
    engine = SimpleNamespace(network=OneShotNetwork(encoder, PrototypeClassifier(), ["organ"]))
    blind = CoWProStep(Blind(), total_steps=10)
    losses = blind.losses(engine, episodes(2))[1]
    assert float(losses["alignment"].detach()) == 0
    assert blind.num_unaligned == 2


def test_alignment__an_answer_without_background_is_0_and_counted(engine):
    class Greedy(PrototypeClassifier):
        """Finds everything in the query."""

        calls = 0

        def score(self, query, prototypes, valid=None):
            self.calls += 1
            return super().score(query, prototypes, valid) + 100 * (self.calls == 2)

    greedy = CoWProStep(Greedy(), total_steps=10)
    losses = greedy.losses(engine, episodes(2))[1]
    assert float(losses["alignment"].detach()) == 0
    assert greedy.num_unaligned == 2


def test_freeze_norm__keeps_the_statistics(engine):
    norm = engine.network.encoder.backbone.bn1
    before = norm.running_mean.clone()
    step(freeze_norm=True).losses(engine, episodes(1))
    torch.testing.assert_close(norm.running_mean, before)
    engine.network.train()
    step().losses(engine, episodes(1))
    assert not torch.equal(norm.running_mean, before)


def test_freeze_norm__of_a_network_without_batch_norms_is_an_error():
    encoder = DilatedResNet(18, widen_factor=0.125, out_channels=32, slice_norm=True)
    network = OneShotNetwork(encoder, PrototypeClassifier(), ["organ"])
    with pytest.raises(ValueError, match="the network has none"):
        step(freeze_norm=True).losses(SimpleNamespace(network=network), episodes(1))


def test_steps__learn_to_find_the_square(engine):
    method = step(spatial_weight=1.0)
    optimizer = torch.optim.Adam(engine.network.parameters(), 1e-3)
    history = []
    for seed in range(12):
        losses = method.losses(engine, episodes(2, seed=seed))[1]
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total.detach()))
    assert sum(history[-3:]) < 0.8 * sum(history[:3])
