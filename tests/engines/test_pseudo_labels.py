import pytest
import torch
from ignite.engine import Events
from torch import nn

from medseg_kit.engines.pseudo_labels import HiddenSlices, branches
from medseg_kit.methods.cct import CrossConsistencyStep
from medseg_kit.methods.cross_teaching import CrossTeachingStep
from medseg_kit.methods.mean_teacher import MeanTeacherStep
from medseg_kit.methods.supervised_slices import SupervisedSliceStep
from tests.methods.slice_training import make_batch, pair, train, unet, unet_cct

NETWORKS = {
    "teacher": (unet, lambda: MeanTeacherStep(total_steps=4, consistency_start=0)),
    "pair": (pair, lambda: CrossTeachingStep(total_steps=4, ema_decay=0.9)),
    "decoders": (unet_cct, lambda: CrossConsistencyStep(total_steps=4)),
}


def hidden(count=3):
    batch = make_batch(labelled=count, unlabelled=0, seed=9)
    return HiddenSlices(batch["image"], batch["label"][:, 0], batch_size=2)


class Fixed(nn.Module):
    """Says the same class everywhere in the left half, and the background elsewhere."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.value = value

    def forward(self, image):
        logits = torch.zeros(len(image), 3, *image.shape[2:])
        logits[:, 0], logits[:, self.value, :, : image.shape[3] // 2] = 0.5, 1.0
        return logits * self.weight


def test_score__dice_over_all_slices_of_the_organs_that_occur():
    labels = torch.zeros(2, 4, 4, dtype=torch.uint8)
    labels[0, :, :1] = 1  # 4 pixels, of the 16 that are called 1
    slices = HiddenSlices(torch.zeros(2, 1, 4, 4), labels, batch_size=1)
    step = SupervisedSliceStep(total_steps=1)
    assert slices.score(Fixed(1), step) == {"student": pytest.approx(2 * 4 / (4 + 16))}
    assert slices.score(Fixed(2), step) == {"student": 0.0}  # class 2 occurs nowhere: left out


def test_branches__students_and_a_teacher_that_is_asked():
    step = MeanTeacherStep(total_steps=4, consistency_start=2)
    network = unet()
    train(step, network, [make_batch()])
    assert list(branches(network, step)) == ["student"]
    train(step, network, [make_batch()])
    assert list(branches(network, step)) == ["student", "teacher"]
    both = branches(pair(), CrossTeachingStep(total_steps=4))
    assert list(both) == ["first student (UNet2D)", "second student (SwinUNet2D)"]


@pytest.mark.parametrize("name", NETWORKS)
def test_score__training_is_the_same_bit_for_bit(name):
    make_network, make_step = NETWORKS[name]
    results = []
    for scored in (False, True):
        network, step, scores = make_network(), make_step(), []

        def note(engine, step=step, scores=scores):
            scores.append(hidden().score(engine.network, step))

        torch.manual_seed(0)
        handlers = [(Events.ITERATION_COMPLETED, note)] if scored else []
        losses = train(step, network, [make_batch(seed=1), make_batch(seed=2)], handlers=handlers)
        state = {**network.state_dict(), **step.state_dict().get("teacher", {})}
        results.append((losses, state, torch.get_rng_state(), network.training))
        assert len(scores) == 2 * scored
        assert all(0 <= value <= 1 for score in scores for value in score.values())
    (losses, state, random, mode), (others, other, again, same) = results
    assert (losses, mode) == (others, same)
    assert torch.equal(random, again)
    assert all(torch.equal(state[key], other[key]) for key in state)
    assert state.keys() == other.keys()
