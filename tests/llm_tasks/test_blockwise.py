"""Scores of a model whose blocks are elsewhere are those of a model on its device; a block is brought there once.

"Elsewhere" is host memory, with the CPU or the stand-in for an accelerator (fake_accelerator.py) as the device.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import slow_cases
from fake_accelerator import Meter, fake_accelerator
from tiny_models import EACH, continuations, make_model, share_little
from torch import nn
from transformers import AutoModelForCausalLM, MambaConfig, PreTrainedModel

from llm_tasks.engine.caches import PrefixLayer
from llm_tasks.engine.greedy import AnswerEnd, greedy_answers
from llm_tasks.engine.log_likelihood import log_likelihoods
from llm_tasks.engine.packing import distinct_reads
from llm_tasks.engine.proof import scoring_ways
from llm_tasks.engine.ways import PLAIN
from llm_tasks.engine.window_losses import losses_blockwise, measured_in_memory
from llm_tasks.evaluation import Reading, held, score
from pruning.blocks import CPU, HostBlocks, move_outside
from pruning.layers import decoder_blocks


class CountingBlocks(HostBlocks):
    """Counts how often each block is held."""

    def __init__(self, model: PreTrainedModel, device: torch.device = CPU) -> None:
        super().__init__(decoder_blocks(model)[1], device, ahead=True)
        self.held: Counter[int] = Counter()

    @contextmanager
    def hold(self, index: int) -> Iterator[nn.Module]:
        self.held[index] += 1
        with super().hold(index) as block:
            yield block


@pytest.fixture
def meter() -> Iterator[Meter]:
    with fake_accelerator() as meter:
        yield meter


@pytest.mark.parametrize("name", EACH)
def test_every_architecture_scores_the_same_with_each_block_held_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_little(monkeypatch)
    model, asked = make_model(name), continuations()
    expected = log_likelihoods(model, asked, tokens_per_batch=64)
    storage = CountingBlocks(model)
    with held(model, storage):
        ways = scoring_ways(model, distinct_reads(asked))
    storage.held.clear()
    found = log_likelihoods(model, asked, 64, ways=ways, storage=storage)
    assert set(storage.held.values()) == {1} and len(storage.held) == len(decoder_blocks(model)[1])
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, atol=1e-4)
    assert found.work == expected.work


@pytest.mark.slow
def test_prefixes_of_prefixes_and_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    share_little(monkeypatch)
    model, asked = make_model("llama"), continuations(2, 12)
    expected = log_likelihoods(model, asked, tokens_per_batch=64)
    for ways in (None, PLAIN):
        found = log_likelihoods(model, asked, 64, ways=ways, storage=CountingBlocks(model))
        np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, atol=1e-4)
        assert np.array_equal(found.first_token, expected.first_token)


def test_of_a_prefix_one_layer_is_kept_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    share_little(monkeypatch)
    model = make_model("llama")
    asked = continuations()
    ways = scoring_ways(model, distinct_reads(asked))
    count, made, kept = len(model.model.layers), [], []
    create, update = PrefixLayer.__init__, PrefixLayer.update

    def creating(self: PrefixLayer, *given: object) -> None:
        create(self, *given)
        made.append(self)

    def updating(self: PrefixLayer, *given: object, **more: object) -> object:
        result = update(self, *given, **more)
        kept.append({index % count for index, layer in enumerate(made) if layer.extended is not None})
        return result

    monkeypatch.setattr(PrefixLayer, "__init__", creating)
    monkeypatch.setattr(PrefixLayer, "update", updating)
    log_likelihoods(model, asked, 64, ways=ways, storage=CountingBlocks(model))
    assert set().union(*kept) == set(range(count))
    assert max(map(len, kept)) == 1


def test_models_whose_blocks_cannot_be_run_alone_bring_all_blocks_for_every_batch() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4)
    ).eval()
    asked = continuations()
    expected = log_likelihoods(model, asked, 64)
    found = score(model, asked, Reading(tokens_per_batch=64), scoring_ways(model, distinct_reads(asked)),
                  storage=CountingBlocks(model))  # fmt: skip
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", *slow_cases("gemma3")])
def test_on_a_device_with_the_blocks_in_host_memory(name: str, meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    share_little(monkeypatch)
    device, asked = torch.device("fake"), continuations(2, 3)
    whole, model = make_model(name).to("fake"), make_model(name)
    expected = log_likelihoods(whole, asked, 64)
    move_outside(model, device)
    found = score(model, asked, Reading(tokens_per_batch=64), scoring_ways(whole, distinct_reads(asked)),
                  storage=CountingBlocks(model, device))  # fmt: skip
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, atol=1e-5)


def test_on_a_device_a_batch_is_scored_without_waiting(meter: Meter) -> None:
    """More batches copy more tokens, positions and targets to the device, and nothing back; the CPU waits for none."""
    model, asked = make_model("llama").to("fake"), continuations(4, 12)
    ways = scoring_ways(model, distinct_reads(asked))
    traffic = {}
    for budget in (400, 40):
        meter.reset()
        log_likelihoods(model, asked, budget, ways=ways)
        traffic[budget] = meter.traffic
    assert traffic[40].copies_in > traffic[400].copies_in
    assert traffic[40].waits == traffic[400].waits
    assert traffic[40].blocking_in == 0
    assert traffic[40].copies_out == traffic[400].copies_out <= 2


def test_where_memory_runs_out_smaller_batches_score_the_same(meter: Meter, caplog: pytest.LogCaptureFixture) -> None:
    model, asked, device = make_model("llama"), continuations(4, 12), torch.device("fake")
    move_outside(model, device)
    with held(model, storage := CountingBlocks(model, device)):
        ways = scoring_ways(model, distinct_reads(asked))
    meter.reset()
    expected = log_likelihoods(model, asked, 40, ways=ways, storage=storage)
    meter.limit(int(meter.peak_bytes * 1.05))
    found = log_likelihoods(model, asked, 2000, ways=ways, storage=storage)
    assert "tokens are computed at once" in caplog.text
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", *slow_cases("bloom")])
def test_answers_with_the_blocks_in_host_memory(name: str, meter: Meter) -> None:
    prompts = [continuation.tokens for continuation in continuations(1, 4)[::3]]
    whole, model, device = make_model(name).to("fake"), make_model(name), torch.device("fake")
    end = AnswerEnd(5, lambda tokens: False)
    expected, _ = greedy_answers(whole, prompts, end, 64)
    move_outside(model, device)
    with held(model, CountingBlocks(model, device)):
        found, _ = greedy_answers(model, prompts, end, 64)
    assert found == expected


def test_perplexity_block_by_block_on_a_device(meter: Meter) -> None:
    windows = torch.randint(0, 40, (6, 12), generator=torch.Generator().manual_seed(0))
    whole, model, device = make_model("llama").to("fake"), make_model("llama"), torch.device("fake")
    move_outside(model, device)
    found = losses_blockwise(model, CountingBlocks(model, device), windows, 24, "no")
    np.testing.assert_allclose(found, measured_in_memory(whole, windows, 24, "no")["window_loss"], atol=1e-5)
