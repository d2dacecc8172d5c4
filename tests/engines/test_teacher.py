import pytest
import torch
from torch import nn

from medseg_kit.engines.teacher import Teacher


def network(value):
    layers = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for tensor in (*layers.parameters(), layers[1].running_mean):
            tensor.fill_(value)
    return layers


@pytest.mark.parametrize(("step", "kept"), [(0, 0.0), (9, 0.9), (99, 0.99), (5000, 0.99)])
def test_follow__golden_decay(step, kept):
    teacher = Teacher()
    teacher.of(network(1.0))
    teacher.follow(network(0.0), step)
    assert teacher.network[0].weight[0, 0].item() == pytest.approx(kept, abs=1e-6)


def test_follow__buffers_only_where_asked():
    for buffers, expected in ((False, 1.0), (True, 0.99)):
        teacher = Teacher(buffers=buffers)
        teacher.of(network(1.0))
        source = network(0.0)
        source[1].num_batches_tracked += 5
        teacher.follow(source, 1000)
        assert teacher.network[1].running_mean[0].item() == pytest.approx(expected)
        assert teacher.network[1].num_batches_tracked.item() == (5 if buffers else 0)


def test_teacher__trains_no_weight_and_stays_in_training_mode():
    student = network(1.0).eval()
    teacher = Teacher().of(student)
    assert teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_state__round_trip_also_before_the_first_use():
    first = Teacher()
    first.of(network(3.0))
    second = Teacher()
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["0.weight"][0, 0] == 3.0
    assert second.of(network(1.0))[0].weight[0, 0] == 3.0


def test_state__an_empty_one_forgets_the_teacher():
    """A federation with ``client_state: reset`` starts each round without the last one's."""
    teacher = Teacher()
    empty = teacher.state_dict()
    teacher.of(network(3.0))
    teacher.load_state_dict(empty)
    assert teacher.of(network(1.0))[0].weight[0, 0] == 1.0


def test_teacher__wrong_decay():
    with pytest.raises(ValueError, match="decay"):
        Teacher(1.0)
