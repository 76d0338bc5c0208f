"""The slow, plain way to what the walk and the stream give: whole forward passes with hooks, whole models in memory."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm_tasks.methods import METHODS, Options, Strength
from pruning.blocks import StreamedBlocks
from pruning.layers import decoder_weights
from pruning.replay import Replay
from pruning.walk import compress_blocks

SIZE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
        "pad_token_id": 0}  # fmt: skip
GEMMA4 = {**SIZE, "head_dim": 8, "global_head_dim": 8, "num_global_key_value_heads": 2, "sliding_window": 5,
          "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 40, "num_kv_shared_layers": 0}  # fmt: skip


def more_configs() -> dict[str, PretrainedConfig]:
    """What decoder_configs lacks: buffers in the file, parameters of activations, float32 parts, conversions."""
    experts = {**SIZE, "moe_intermediate_size": 8, "num_experts_per_tok": 2}
    latent = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    linear = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
              "linear_value_head_dim": 8,
              "layer_types": ["linear_attention", "full_attention", "linear_attention"]}  # fmt: skip
    long_rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3],
                 "long_factor": [1.0, 2.0, 4.0, 8.0], "original_max_position_embeddings": 8}  # fmt: skip
    local = {"vocab_size": 40, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "window_size": 4,
             "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64}  # fmt: skip
    kinds = {
        "gemma4_text": GEMMA4,
        "apertus": SIZE,
        "nanochat": SIZE,
        "gpt_neo": local,
        "phi3": {**SIZE, "rope_parameters": long_rope, "original_max_position_embeddings": 8},
        "qwen3_moe": {**experts, "num_experts": 3, "head_dim": 8},
        "ernie4_5_moe": {**experts, "moe_num_experts": 3, "moe_k": 2, "moe_num_shared_experts": 1},
        "deepseek_v3": {**experts, **latent, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
                        "first_k_dense_replace": 1},
        "qwen3_next": {**experts, **linear, "num_experts": 3, "head_dim": 8, "shared_expert_intermediate_size": 8},
    }  # fmt: skip
    return {f"{kind} more": CONFIG_MAPPING[kind](**options) for kind, options in kinds.items()}


class _ExpertProducts(TorchFunctionMode):
    """Calls `seen(name, inputs)` at every nn.functional.linear with one expert's slice of a 3-D weight."""

    def __init__(self, names: dict[int, str], seen: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._names, self._seen = names, seen

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.nn.functional.linear and args[1].data_ptr() in self._names:
            self._seen(self._names[args[1].data_ptr()], args[0])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def plain_input_sq_norms(model: PreTrainedModel, tokens: Tensor) -> dict[str, Tensor]:
    """Squared norms of each weight's inputs over whole forward passes, one window at a time.

    Args:
        model: in memory, in eval mode.
        tokens: (windows, seq_len).
    Returns:
        By the weight's name (as in decoder_weights, so experts too), (in_features,) float64; a weight that no token
        reached is left out.
    """
    sums: dict[str, Tensor] = {}

    def seen(name: str, inputs: Tensor) -> None:
        squares = inputs.double().square().flatten(0, -2).sum(0)
        sums[name] = sums.get(name, 0) + squares

    weights = decoder_weights(model)
    handles = [
        weight.module.register_forward_pre_hook(lambda _, args, name=name: seen(name, args[0]))
        for name, weight in weights.items()
        if weight.expert is None
    ]
    experts = {weight.matrix.data_ptr(): name for name, weight in weights.items() if weight.expert is not None}
    before = model.get_experts_implementation()
    if experts and model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    try:
        with _ExpertProducts(experts, seen):
            for window in tokens:
                model(window[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        if experts and model._can_set_experts_implementation():
            model.set_experts_implementation(before)
    return sums


@torch.no_grad()
def walked_input_sq_norms(model: PreTrainedModel, tokens: Tensor, tokens_per_batch: int = 24) -> dict[str, Tensor]:
    """The same from the walk over blocks, which leaves the weights as they are."""
    found: dict[str, Tensor] = {}

    def note(W: Tensor, inputs: Any, name: str) -> Tensor:
        found[name] = inputs.sq_norms.double()
        return W

    compress_blocks(model, tokens, note, "sq_norms", tokens_per_batch=tokens_per_batch)
    return found


def compare_tensors(streamed: PreTrainedModel, loaded: PreTrainedModel, names: Callable[[str], bool]) -> None:
    """Raises AssertionError where a parameter or buffer, persistent or not, differs in bits, dtype or presence."""
    for kind in ("named_parameters", "named_buffers"):
        mine, own = (dict(getattr(model, kind)(remove_duplicate=False)) for model in (streamed, loaded))
        assert mine.keys() == own.keys(), (kind, mine.keys() ^ own.keys())
        for name in filter(names, own):
            assert mine[name].dtype == own[name].dtype, (name, mine[name].dtype, own[name].dtype)
            assert torch.equal(mine[name], own[name]), name


@torch.no_grad()
def streamed_equals_memory(folder: Path | str, tokens: Tensor, trust_remote_code: bool = False) -> str:
    """Whether a folder's model gives the same bits streamed as loaded: tensors, logits, and compressed by wanda.

    Args:
        folder: a model saved by save_pretrained.
        tokens: (windows, seq_len).
    Returns:
        "equal", or "refused: <line>" where streaming refuses the model.
    Raises:
        AssertionError: anything differs, or the refusal is more than a line.
    """
    options = {"dtype": "auto", "trust_remote_code": trust_remote_code}
    batch = max(1, len(tokens) // 2) * tokens.shape[1]
    method, strength = METHODS["wanda"], Strength("sparsity", 0.5)

    def compress(W: Tensor, inputs: Any, _: str) -> Tensor:
        return method.compress(W, inputs, strength, Options())

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        loaded = AutoModelForCausalLM.from_pretrained(folder, **options).eval().requires_grad_(False)
        try:
            storage = StreamedBlocks(Path(folder), trust_remote_code=trust_remote_code)
            prefix = f"{storage.name}."
            compare_tensors(storage.model, loaded, lambda name: not name.startswith(prefix))
            replay = Replay(storage.model, storage, tokens, batch, "no")
        except ValueError as error:
            return _refusal(error)
        loaded(tokens[:1], use_cache=False)  # some models change the precision of a buffer in their first pass
        for index in range(len(storage.blocks)):
            with storage.hold(index) as block:
                compare_tensors(storage.model, loaded, lambda name, of=f"{prefix}{index}.": name.startswith(of))
                replay.advance(index, block)
        logits = torch.cat([logits for _, logits in replay.logits()])
        rows = batch // tokens.shape[1]
        own = torch.cat([loaded(part, use_cache=False).logits for part in tokens.split(rows)])
        assert torch.equal(logits, own), f"logits differ by {(logits - own).abs().max()}"

        storage = StreamedBlocks(Path(folder), out, job="test", trust_remote_code=trust_remote_code)
        try:
            compress_blocks(storage.model, tokens, compress, method.statistic, tokens_per_batch=batch, storage=storage)
        except ValueError as error:
            with pytest.raises(ValueError, match=re.escape(str(error))):
                compress_blocks(loaded, tokens, compress, method.statistic, tokens_per_batch=batch)
            return _refusal(error)
        storage.complete()
        compress_blocks(loaded, tokens, compress, method.statistic, tokens_per_batch=batch)
        again, report = AutoModelForCausalLM.from_pretrained(out, **options, output_loading_info=True)
        assert not any(report.values()), report
        again(tokens[:1], use_cache=False)
        compare_tensors(again.eval(), loaded, lambda name: True)
        assert all((weight.matrix == 0).any() for weight in decoder_weights(again).values())
    return "equal"


def _refusal(error: ValueError) -> str:
    assert "\n" not in str(error), error
    return f"refused: {error}"
