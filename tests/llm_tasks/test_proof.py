"""Fast paths are taken where they are proven on the model at hand, and only there."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import slow_cases
from tiny_models import VOCABULARY, continuations, make_model, one_at_a_time
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DogeConfig,
    GPTNeoConfig,
    LlamaConfig,
    MambaConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XGLMConfig,
)
from transformers.models.llama import modeling_llama

from llm_tasks.engine import caches, feed, log_likelihood, proof, ways
from llm_tasks.engine.greedy import AnswerEnd, answering_ways, greedy_answers
from llm_tasks.engine.log_likelihood import log_likelihoods
from llm_tasks.engine.packing import LONGEST_ROW, Continuation, distinct_reads
from llm_tasks.engine.proof import scoring_ways
from llm_tasks.engine.ways import PLAIN, Lengths, Ways, arithmetic, lengths_of

SIZE = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24}  # fmt: skip
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 5.0, 9.0]}


def rope(kind: str, **more: object) -> dict[str, object]:
    return {"rope_type": kind, "rope_theta": 100.0, "factor": 4.0, **more}


CONFIGS: dict[str, PretrainedConfig] = {
    "local windows by place in the row": GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        window_size=6, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    ),
    "local windows longer than every sequence": GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        window_size=48, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0,
    ),
    "positions from the padding token on": RobertaConfig(
        **SIZE, max_position_embeddings=70, is_decoder=True, pad_token_id=1, bos_token_id=0, eos_token_id=2
    ),
    "two sets of frequencies": LlamaConfig(
        **SIZE, max_position_embeddings=64,
        rope_parameters=rope("longrope", original_max_position_embeddings=14, **FACTORS),
    ),
    "frequencies by length": LlamaConfig(**SIZE, max_position_embeddings=14, rope_parameters=rope("dynamic")),
}  # fmt: skip
QUICK = ("positions from the padding token on", "two sets of frequencies")
EACH = [*QUICK, *slow_cases(*(name for name in CONFIGS if name not in QUICK))]


def model_of(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model


def proven(model: PreTrainedModel, asked: list[Continuation]) -> Ways:
    return scoring_ways(model, distinct_reads(asked))


def of_many_lengths() -> list[Continuation]:
    """Some that share beginnings, of 3 to 26 tokens, and one of every length around 14."""
    return [*continuations(3, 6), *(Continuation(tuple(range(3, 3 + length)), length - 2) for length in range(11, 19))]


@pytest.mark.parametrize("name", EACH)
def test_what_cannot_be_packed_is_scored_as_one_sequence_at_a_time(name: str):
    model, asked = model_of(CONFIGS[name]), of_many_lengths()
    found = log_likelihoods(model, asked, tokens_per_batch=64)
    totals, firsts = one_at_a_time(model_of(CONFIGS[name]), asked) if "length" not in name else alone(name, asked)
    np.testing.assert_allclose(found.log_likelihood, totals, atol=1e-4, rtol=0)
    assert found.first_token.tolist() == firsts


def alone(name: str, asked: list[Continuation]) -> tuple[list[float], list[int]]:
    """Each by a model of its own, whose frequencies no other sequence has changed."""
    found = [one_at_a_time(model_of(CONFIGS[name]), [continuation]) for continuation in asked]
    return [total for (total,), _ in found], [first for _, (first,) in found]


@pytest.mark.parametrize("name", EACH)
def test_what_cannot_be_packed_is_answered_as_by_whole_passes(name: str):
    prompts = [continuation.tokens[: continuation.start] for continuation in of_many_lengths()[::3]]
    model = model_of(CONFIGS[name])
    found, _ = greedy_answers(model, prompts, AnswerEnd(4, lambda answer: False), tokens_per_batch=64)
    for prompt, answer in zip(prompts, found, strict=True):
        fresh, tokens = model_of(CONFIGS[name]), list(prompt)
        for token in answer:
            with torch.no_grad():
                assert fresh(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax().item() == token
            tokens.append(token)


@pytest.mark.parametrize(
    ("name", "shares", "packs"),
    [("local windows by place in the row", True, False), ("local windows longer than every sequence", True, False),
     ("positions from the padding token on", False, False),
     ("two sets of frequencies", True, True)],
)  # fmt: skip
def test_what_is_right_is_still_taken(name: str, shares: bool, packs: bool, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    found = proven(model_of(CONFIGS[name]), continuations(3, 6))
    assert (found.shares, found.packs) == (shares, packs)
    assert ("packed rows: not used" in caplog.text) is not packs


def test_a_model_that_looks_ahead_shares_nothing():
    """One block alone would not show it: the next one sees what later tokens changed in the keys of earlier ones."""
    config = RobertaConfig(**SIZE, max_position_embeddings=70, is_decoder=False, pad_token_id=0)
    assert proven(model_of(config), continuations(3, 6))[:3] == (False, False, False)


def test_a_model_that_changes_while_it_runs_has_one_worker():
    model, asked = make_model("llama"), continuations(1, 3)
    assert proven(model, asked).workers

    class Counting(nn.Linear):
        calls = 0

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            self.calls = self.calls + 1
            return super().forward(hidden)

    other = make_model("llama")
    other.model.layers[0].mlp.up_proj.__class__ = Counting
    assert not proven(other, asked).workers


def test_of_a_model_that_draws_at_random_the_log_says_so(caplog: pytest.LogCaptureFixture):
    model = make_model("llama")
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + torch.randn(output.shape))
    found = proven(model, continuations(1, 3))
    assert found[:3] == (False, False, False) and not found.batches and not found.workers
    assert "gives other scores at every computation" in caplog.text


def test_a_recurrent_model_takes_neither_and_pads():
    model = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2))
    found = proven(model.eval(), continuations(1, 3))
    assert (found.shares, found.packs, found.pads) == (False, False, True)


@pytest.mark.parametrize("dtype", [torch.float32, *slow_cases(torch.bfloat16)], ids=str)
@pytest.mark.parametrize("broken", ["positions", "mask", "keys"])
def test_an_engine_that_errs_proves_nothing(broken: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """The proof can fail: with positions one too far in branches, a mask that shows all, or keys in another order."""
    model, asked = make_model("llama").to(dtype), continuations(3, 6)
    masks, joined, forward = feed.Engine._masks, caches.joined, modeling_llama.LlamaModel.forward
    if broken == "positions":

        def shifted(self: nn.Module, *given: object, position_ids: torch.Tensor | None = None, **more: object):
            if position_ids is not None:
                position_ids = position_ids + (position_ids > 2)
            return forward(self, *given, position_ids=position_ids, **more)

        monkeypatch.setattr(modeling_llama.LlamaModel, "forward", shifted)
    elif broken == "mask":
        monkeypatch.setattr(feed.Engine, "_masks", lambda *given: torch.zeros_like(masks(*given)))
    else:
        monkeypatch.setattr(caches, "joined", lambda held, own: tuple(both.flip(-2) for both in joined(held, own)))
    found = proven(model, asked)
    assert not (found.shares and found.packs)
    assert found.packs is (broken == "keys")


def test_of_alike_blocks_two_are_computed():
    """Of three; and all again when they are restored."""
    model = make_model("llama")
    ids = torch.arange(12)[None]
    with torch.no_grad(), proof.alike_blocks_skipped(model) as skipped:
        few = model(ids).logits
        skipped.restore()
        whole = model(ids).logits
    assert not torch.allclose(few, whole)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, whole)
    assert not any("forward" in vars(block) for block in model.model.layers)
    model.model.layers[2].forward = lambda hidden, **more: hidden
    with torch.no_grad():
        assert torch.equal(model(ids).logits, few)


def test_blocks_that_differ_are_all_computed():
    """Qwen2's windows begin at its second block: two kinds; a block of other settings is a third."""
    model = make_model("qwen2")
    kinds = {proof._signature(model, index, block, 3) for index, block in enumerate(model.model.layers)}
    assert len(kinds) == 2
    model.model.layers[2].self_attn.scaling = 0.5
    assert len({proof._signature(model, index, block, 3) for index, block in enumerate(model.model.layers)}) == 3


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "mixtral"])
def test_a_model_in_bf16_computes_in_float32_for_a_proof(name: str):
    model, ids = make_model(name).to(torch.bfloat16), torch.arange(12)[None]
    with torch.no_grad(), proof.computed_in_float32(model):
        found = model(ids, use_cache=False).logits
    with torch.no_grad():
        expected = model.float()(ids, use_cache=False).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_a_model_makes_for_longer_sequences_is_not_kept_in_float32():
    """XGLM makes its table of positions anew when a sequence is longer, in the dtype that it finds."""
    config = XGLMConfig(vocab_size=VOCABULARY, max_position_embeddings=8, d_model=16, ffn_dim=24, num_layers=2,
                        attention_heads=2, pad_token_id=1, bos_token_id=0, eos_token_id=2)  # fmt: skip
    model = model_of(config).to(torch.bfloat16)
    assert "model.embed_positions.weights" in dict(model.named_buffers())
    proven(model, continuations(1, 3))
    assert {buffer.dtype for _, buffer in model.named_buffers()} == {torch.bfloat16}
    with torch.no_grad():
        model(torch.arange(20)[None], use_cache=False)
    module = nn.Linear(1, 1)
    module.table = kept = torch.ones(1)  # no buffer
    with proof.tensors_restored(module):
        module.table = torch.zeros(1)
    assert module.table is kept


def test_code_of_others_and_a_plain_run_take_nothing(monkeypatch: pytest.MonkeyPatch):
    model, asked = make_model("llama"), continuations(1, 3)
    assert scoring_ways(model, distinct_reads(asked), plain=True) == PLAIN
    assert answering_ways(model, [(1, 2)], plain=True) == PLAIN
    monkeypatch.setattr(type(model), "__module__", "transformers_modules.some.model")
    assert proven(model, asked) == PLAIN


def test_a_model_is_tried_again_only_with_other_lengths(monkeypatch: pytest.MonkeyPatch):
    model, tried = make_model("llama"), []
    prove = proof._prove
    monkeypatch.setattr(proof, "_prove", lambda *given: tried.append(1) or prove(*given))
    for length, times in [(9, 1), (9, 1), (5, 2), (7, 2), (12, 3), (5, 3), (12, 3)]:
        proven(model, [Continuation(tuple(range(length)), 2), Continuation(tuple(range(9)), 2)])
        assert len(tried) == times


def test_what_is_nan_in_any_sequence_is_not_right():
    right, nan = np.zeros(1), np.full(1, np.nan)
    model = make_model("llama")
    assert proof.is_right(model, "path", lambda: [right, right], [right, right])
    assert not proof.is_right(model, "path", lambda: [nan, right], [right, right])
    assert not proof.is_right(model, "path", lambda: [right, nan], [right, right])


def test_the_longest_sequences_of_both_kinds_of_arithmetic_are_compared():
    sequences = [tuple(range(length)) for length in (3, 14, 15, 400)]
    assert {3, 14, 400} <= set(map(len, proof.sample(sequences, Lengths(14))))


def test_a_model_that_selects_keys_is_left_alone_where_rows_hold_more(monkeypatch: pytest.MonkeyPatch):
    """Rows are of up to LONGEST_ROW tokens, behind a prefix as long as the longest sequence."""
    monkeypatch.setattr(proof, "most_keys", lambda config: LONGEST_ROW)
    assert proven(make_model("llama"), continuations(1, 3)) == PLAIN


def test_an_output_layer_with_a_bias_does_more_than_project():
    model = make_model("llama")
    assert proof._only_projects(model, (1, 2, 3))
    model.lm_head = nn.Linear(model.config.hidden_size, VOCABULARY)
    assert not proof._only_projects(model, (1, 2, 3))


def test_a_model_of_nan_is_an_error_and_no_failed_proof():
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        proven(model, continuations(1, 2))


def letters(model: PreTrainedModel) -> list[Continuation]:
    """Questions that are answered by one of four tokens."""
    asked = continuations(2, 6)
    return [Continuation((*tokens[:start], letter), start) for tokens, start in asked for letter in (5, 6, 7, 8)]


@pytest.mark.parametrize("name", ["llama", *slow_cases("gemma2")])
def test_letters_in_bf16_are_projected_in_float32(name: str):
    """Near the float32 projection of the same hidden states, and without the ties of bf16."""
    model = make_model(name).to(torch.bfloat16)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(0.02).add_(1)  # letters nearly as likely as each other
    asked = letters(model)
    found = log_likelihoods(model, asked, tokens_per_batch=64).log_likelihood.reshape(-1, 4)
    with torch.no_grad():
        coarse = [model(torch.tensor([tokens[:-1]]), use_cache=False).logits[0, -1] for tokens, _ in asked[::4]]
    ties = sum(len(set(row[5:9].tolist())) < 4 for row in coarse)
    assert ties > len(found) / 4
    assert all(len(set(row)) == 4 for row in found)
    if name == "llama":  # in float32, of which only the matmuls are in bf16
        found = log_likelihoods(model.float(), asked, 64, precision="bf16", ways=Ways(projects=True))
        assert all(len(set(row)) == 4 for row in found.log_likelihood.reshape(-1, 4))


def test_the_bias_of_an_output_layer_is_part_of_logits_in_float32():
    model = make_model("llama")
    model.lm_head = nn.Linear(model.config.hidden_size, VOCABULARY)
    hidden = torch.randn(2, 3, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    expected = model.lm_head(hidden.bfloat16().float())
    with log_likelihood.output_in_float32(model, enabled=True):
        torch.testing.assert_close(model.lm_head(hidden.bfloat16()), expected)


def test_long_options_in_bf16_stay_in_bf16_where_float32_would_cost(monkeypatch: pytest.MonkeyPatch):
    model, rows = make_model("llama").to(torch.bfloat16), {}

    read = log_likelihood.read_logits

    def noted(outputs: torch.Tensor, *given: object) -> object:
        rows[outputs.dtype] = rows.get(outputs.dtype, 0) + len(outputs)
        return read(outputs, *given)

    monkeypatch.setattr(log_likelihood, "read_logits", noted)
    asked = [*letters(model), Continuation(tuple(range(1, 30)), 2)]
    log_likelihoods(model, asked, tokens_per_batch=64)
    assert rows[torch.bfloat16] == 27
    assert rows[torch.float32] == len({tokens[:-1] for tokens, _ in asked[:-1]})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(), Lengths()),
        (LlamaConfig(rope_parameters=rope("linear")), Lengths()),
        (CONFIGS["two sets of frequencies"], Lengths(14)),
        (CONFIGS["frequencies by length"], Lengths(14, each=True)),
        (SimpleNamespace(rope_parameters={
            "near": rope("longrope", original_max_position_embeddings=20),
            "far": rope("longrope", original_max_position_embeddings=14),
        }), Lengths(14, each=True)),
    ],
)  # fmt: skip
def test_lengths_at_which_arithmetic_changes_are_read_from_the_config(config: PretrainedConfig, expected: Lengths):
    assert lengths_of(config) == expected


def test_sequences_are_kept_apart_by_kind():
    lengths = [3, 14, 15, 20, 20]
    assert Lengths().grouped(lengths, lengths) == {0: lengths}
    assert Lengths(14).grouped(lengths, lengths) == {0: [3, 14], 1: [15, 20, 20]}
    assert Lengths(14, each=True).grouped(lengths, lengths) == {0: [3, 14], 15: [15], 20: [20, 20]}


@pytest.mark.parametrize(
    ("config", "dtype", "precision", "readers", "expected"),
    [
        (LlamaConfig(), torch.float32, "no", ("letter",), 1),
        (LlamaConfig(), torch.bfloat16, "no", ("letter",), 2),
        (LlamaConfig(), torch.float32, "bf16", ("cloze", "answer"), 2),
        (LlamaConfig(), torch.bfloat16, "no", ("answer",), 1),
        (LlamaConfig(), torch.bfloat16, "no", ("perplexity",), 1),
        (CONFIGS["two sets of frequencies"], torch.float32, "no", ("answer",), 2),
        (CONFIGS["local windows by place in the row"], torch.float32, "no", ("letter",), 3),
        (CONFIGS["positions from the padding token on"], torch.float32, "no", ("letter",), 2),
        (DogeConfig(keep_window_size=16), torch.float32, "no", ("letter",), 2),
        (CONFIGS["local windows by place in the row"], torch.float32, "no", ("perplexity",), 1),
    ],
)
def test_arithmetic_is_raised_where_numbers_changed(
    config: PretrainedConfig, dtype: torch.dtype, precision: str, readers: tuple[str, ...], expected: int
):
    assert arithmetic(config, dtype, precision, readers) == expected


def test_ways_are_told_as_json_holds_them():
    told = ways.Ways(shares=True, compiles=("LlamaMLP",)).described()
    assert told["compiles"] == ["LlamaMLP"] and told["shares"] is True and told["answers"] == "whole"
