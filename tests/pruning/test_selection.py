"""Masks from radix selection are those of a stable sort: on a CPU, an accelerator, and over several devices."""

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch
from fake_accelerator import fake_accelerator
from torch import Tensor

from pruning import masks, selection
from pruning.masks import lowest_k_mask, lowest_k_masks

SPARSITIES = [0.0, 0.001, 0.1, 0.25, 1 / 3, 0.5, 0.5, 0.7, 0.9, 0.99, 1.0]
SHAPES = [(33, 17), (0, 3), (5,), (), (40, 7), (2, 3, 4)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
KINDS = ["any", "whole numbers", "zeros of both signs", "infinities", "tiny", "equal", "close"]


def scores_of(kind: str, dtype: torch.dtype) -> list[Tensor]:
    """Scores in several tensors, the last two not contiguous."""
    generator = torch.Generator().manual_seed(KINDS.index(kind))
    made = []
    for shape in SHAPES:
        scores = torch.randn(shape, generator=generator) * 4
        chance = torch.rand(shape, generator=generator)
        if kind == "whole numbers":
            scores = scores.round()
        elif kind == "zeros of both signs":
            scores = scores.round().masked_fill(chance < 0.2, 0.0).masked_fill(chance > 0.8, -0.0)
        elif kind == "infinities":
            scores = scores.masked_fill(chance < 0.2, torch.inf).masked_fill(chance > 0.8, -torch.inf)
        elif kind == "tiny":  # subnormal in float32, and zeros of both signs in the other dtypes
            scores = scores * 1e-40
        elif kind == "equal":
            scores = torch.full(shape, -1.5)
        elif kind == "close":  # in float32 they differ in the lower 16 bits alone
            scores = 1 + chance * 2**-8
        made.append(scores.to(dtype))
    return [*made, made[0].T, made[4][:, ::2]]


def sorted_twin(tensors: list[Tensor], sparsity: float) -> list[Tensor]:
    """Drop the first k of a stable sort of all scores."""
    flat = torch.cat([tensor.float().flatten() for tensor in tensors])
    keep = torch.ones(len(flat), dtype=torch.bool)
    keep[flat.argsort(stable=True)[: round(sparsity * len(flat))]] = False
    parts = keep.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


@pytest.fixture(params=[100, 2**24], ids=["small parts", "one part"])
def in_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Radix selection on a CPU too, of few scores at once or all."""
    for name in ("PART", "PART_CPU"):
        monkeypatch.setattr(selection, name, request.param)
    for name in ("PARTITIONED", "PARTITIONED_16"):
        monkeypatch.setattr(masks, name, 0)
    yield


def assert_as_sorted(found: list[list[Tensor]], tensors: list[Tensor], sparsities: Sequence[float]) -> None:
    for sparsity, masks_found in zip(sparsities, found, strict=True):
        for mask, expected in zip(masks_found, sorted_twin(tensors, sparsity), strict=True):
            assert torch.equal(mask.cpu(), expected)


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_stable_sort(kind: str, dtype: torch.dtype):
    tensors = scores_of(kind, dtype)
    assert_as_sorted(lowest_k_masks(tensors, SPARSITIES), tensors, SPARSITIES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_partition_equals_a_stable_sort(kind: str, dtype: torch.dtype):
    """What a CPU does with few scores."""
    tensors = scores_of(kind, dtype)
    assert_as_sorted(lowest_k_masks(tensors, SPARSITIES), tensors, SPARSITIES)


ON_CPU = {torch.float32: [], torch.bfloat16: [0, 3], torch.float16: [1, 2, 4, 5, 6, 7]}  # numbers of the tensors


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize(
    ("dtype", "on_cpu"),
    [
        # each with each is slow on the stand-in; a GPU runs all
        pytest.param(dtype, on_cpu, marks=() if ON_CPU[dtype] is on_cpu else pytest.mark.slow)
        for dtype in ON_CPU for on_cpu in ON_CPU.values()
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_stable_sort_on_an_accelerator(accelerator: str, kind: str, dtype: torch.dtype, on_cpu: list[int]):
    tensors = scores_of(kind, dtype)
    there = [tensor if i in on_cpu else tensor.to(accelerator) for i, tensor in enumerate(tensors)]
    found = lowest_k_masks(there, SPARSITIES[::2])
    assert all([mask.device for mask in each] == [tensor.device for tensor in there] for each in found)
    assert_as_sorted(found, tensors, SPARSITIES[::2])


@pytest.mark.usefixtures("in_parts")
def test_scores_are_computed_part_by_part():
    tensors = scores_of("any", torch.float32)
    of_scores = lowest_k_masks([tensor.abs() for tensor in tensors], SPARSITIES)
    found = lowest_k_masks(tensors, SPARSITIES, torch.abs)
    assert all(map(torch.equal, itertools.chain(*found), itertools.chain(*of_scores)))


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("tensors", [[], [torch.empty(0)], [torch.empty(2, 0), torch.empty(0, 3)]])
def test_no_scores(accelerator: str, tensors: list[Tensor]):
    for device in ("cpu", accelerator):
        found = lowest_k_masks([tensor.to(device) for tensor in tensors], [0.0, 0.5, 1.0])
        assert [[mask.shape for mask in parts] for parts in found] == [[tensor.shape for tensor in tensors]] * 3


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("bits", [0x7F800001, 0x7FC00000, 0x7FFFFFFF, -0x7FFFFF, -0x400000, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsities", [[0.0], [0.5], [0.2, 1.0], []])
def test_every_nan_is_refused(accelerator: str, bits: int, dtype: torch.dtype, sparsities: list[float]):
    """Of both signs, quiet and signalling, and with all bits of the mantissa set or one."""
    scores = torch.tensor([3, 0x7F800000, bits, -0x800000], dtype=torch.int32).view(torch.float32).to(dtype)
    assert scores.isnan().tolist() == [False, False, True, False]
    for device in ("cpu", accelerator):
        with pytest.raises(ValueError, match="a score is NaN"):
            lowest_k_masks([torch.ones(20).to(device, dtype), scores.to(device)], sparsities)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sparsities", [[0.5], SPARSITIES])
def test_an_accelerator_is_waited_for_once_to_refuse_nan(sparsities: list[float], dtype: torch.dtype):
    with fake_accelerator() as meter:
        scores = torch.randn(300, 200).to("fake", dtype)
        meter.reset()
        lowest_k_masks([scores, scores.T], sparsities)
        assert (meter.traffic.waits, meter.traffic.copies_in, meter.traffic.copies_out) == (1, 0, 0)
        meter.reset()
        masks.unchecked_masks([scores], [700])
        assert (meter.traffic.waits, meter.traffic.copies_in, meter.traffic.copies_out) == (0, 0, 0)


def test_more_scores_than_a_partition_takes(monkeypatch: pytest.MonkeyPatch):
    """The limits themselves: at them a CPU partitions, above them it does not, and the masks are the same."""
    monkeypatch.setattr(masks, "PARTITIONED", 100)
    monkeypatch.setattr(masks, "PARTITIONED_16", 50)
    for dtype, size in itertools.product([torch.float32, torch.bfloat16], [50, 51, 100, 101]):
        scores = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
        assert torch.equal(lowest_k_mask(scores, 0.3), sorted_twin([scores], 0.3)[0])
