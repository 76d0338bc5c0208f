"""The stand-in for an accelerator refuses and counts what it says it does."""

import pytest
import torch
from fake_accelerator import fake_accelerator
from torch import Tensor


def test_it_is_there_only_inside() -> None:
    with fake_accelerator():
        assert torch.accelerator.current_accelerator(check_available=True) == torch.device("fake")
    assert torch.accelerator.current_accelerator(check_available=True) is None


def test_it_computes_what_the_cpu_computes() -> None:
    one, other = torch.randn(3, 4), torch.randn(4, 5)
    with fake_accelerator():
        found = one.to("fake") @ other.to("fake")
        assert found.device == torch.device("fake", 0)
        assert torch.equal(found.cpu(), one @ other)


def test_tensors_of_two_devices_do_not_meet() -> None:
    with fake_accelerator():
        here = torch.ones(3, device="fake")
        with pytest.raises(RuntimeError, match=r"a tensor of the CPU, \(3,\), meets tensors of the fake device"):
            here + torch.ones(3)
        with pytest.raises(RuntimeError, match="meets"):
            here[torch.tensor([0, 1])]
        assert (here + torch.tensor(1.0)).cpu().tolist() == [2, 2, 2]  # a number of no dimension may


def test_numpy_does_not_see_the_device() -> None:
    with fake_accelerator(), pytest.raises(RuntimeError):
        torch.ones(3, device="fake").numpy()


@pytest.mark.parametrize(
    ("work", "copies_in", "copies_out", "waits"),
    [
        (lambda here: here.cpu(), 0, 1, 0),
        (lambda here: here.to("cpu"), 0, 1, 0),
        (lambda here: torch.ones(3).to(here.device), 1, 0, 0),
        (lambda here: here.copy_(torch.ones(4, 4)), 1, 0, 0),
        (lambda here: torch.ones(4, 4).copy_(here), 0, 1, 0),
        (lambda here: torch.tensor([1.0, 2.0], device=here.device), 1, 0, 0),
        (lambda here: here[[0, 1]], 1, 0, 0),
        (lambda here: float(here[0, 0]), 0, 0, 1),
        (lambda here: bool((here > 0).any()), 0, 0, 1),
        (lambda here: here[here > 0], 0, 0, 1),
        (lambda here: here.nonzero(), 0, 0, 1),
        (lambda here: here @ here + torch.eye(4, device=here.device), 0, 0, 0),
        (lambda here: here.double().to(torch.bfloat16), 0, 0, 0),
    ],
)
def test_it_counts_what_crosses(work: object, copies_in: int, copies_out: int, waits: int) -> None:
    with fake_accelerator() as meter:
        here = torch.randn(4, 4).to("fake")
        meter.reset()
        work(here)
        traffic = meter.traffic
    assert (traffic.copies_in, traffic.copies_out, traffic.waits) == (copies_in, copies_out, waits)


def test_it_counts_memory_once_for_all_views_and_has_no_more_than_its_limit() -> None:
    with fake_accelerator() as meter:
        before = meter.held_bytes
        held: list[Tensor] = [torch.zeros(1000, device="fake")]
        held.append(held[0].view(10, 100)[2:])
        assert (meter.held_bytes - before, meter.peak_bytes - before) == (4000, 4000)
        meter.limit(before + 5000)
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(500, device="fake")
        del held
        torch.zeros(500, device="fake")
        assert (meter.held_bytes - before, meter.peak_bytes - before) == (0, 4000)
