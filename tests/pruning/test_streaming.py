"""A model compressed block by block from its files is the model compressed in memory, also after a kill."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llm_tasks.methods import METHODS, Options, Strength
from pruning.blocks import INDEX_FILE, StreamedBlocks
from pruning.layers import decoder_weights
from pruning.replay import Replay
from pruning.walk import InputStatistics, compress_blocks

WINDOWS = torch.randint(3, 17, (5, 12), generator=torch.Generator().manual_seed(0))


def compressor(name: str, strength: Strength):
    return lambda W, inputs, _: METHODS[name].compress(W, inputs, strength, Options()), METHODS[name].statistic


def stream(source: Path, out: Path, name: str, strength: Strength, job: str = "one") -> None:
    storage = StreamedBlocks(source, out, job=job)
    compress_blocks(storage.model, WINDOWS, *compressor(name, strength), tokens_per_batch=24, storage=storage)
    storage.complete()


@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("magnitude", Strength("sparsity", 0.5)),
        ("wanda", Strength("nm_ratio", "2:4")),
        ("sparsegpt", Strength("sparsity", 0.5)),
        ("gptq", Strength("bits", 4)),
    ],
)
def test_streamed_equals_loaded_bit_for_bit(tiny_decoder: Path, tmp_path: Path, name: str, strength: Strength):
    stream(tiny_decoder, tmp_path / "out", name, strength)
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    compress_blocks(model, WINDOWS, *compressor(name, strength), tokens_per_batch=24)
    streamed = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for key, value in model.state_dict().items():
        assert torch.equal(streamed.state_dict()[key], value), key
    assert streamed.lm_head.weight is streamed.model.embed_tokens.weight
    assert not (tmp_path / "out" / ".stream").exists()


def test_a_streamed_forward_equals_the_models_own(tiny_decoder: Path):
    storage = StreamedBlocks(tiny_decoder)
    with torch.no_grad():
        replay = Replay(storage.model, storage, WINDOWS, 24, "no")
        for index in range(len(storage.blocks)):
            with storage.hold(index) as block:
                replay.advance(index, block)
        logits = torch.cat([logits for _, logits in replay.logits()])
        model = AutoModelForCausalLM.from_pretrained(tiny_decoder)
        own = torch.cat([model(batch, use_cache=False).logits for batch in WINDOWS.split(2)])
    assert torch.equal(logits, own)


@pytest.mark.parametrize("died_at", ["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.k_proj.weight"])
def test_a_killed_job_goes_on_at_its_block_and_ends_the_same(tiny_decoder: Path, tmp_path: Path, died_at: str):
    out, strength = tmp_path / "out", Strength("sparsity", 0.5)
    compress, statistic = compressor("sparsegpt", strength)
    calls: list[str] = []

    class KilledError(BaseException):
        pass

    def dying(W: torch.Tensor, inputs: InputStatistics, name: str) -> torch.Tensor:
        if name == died_at:
            raise KilledError
        return compress(W, inputs, name)

    def counting(W: torch.Tensor, inputs: InputStatistics, name: str) -> torch.Tensor:
        calls.append(name)
        return compress(W, inputs, name)

    storage = StreamedBlocks(tiny_decoder, out, job="one")
    with pytest.raises(KilledError):
        compress_blocks(storage.model, WINDOWS, dying, statistic, tokens_per_batch=24, storage=storage)
    assert not StreamedBlocks.is_complete(out, "one")
    assert not (out / INDEX_FILE).exists()
    storage = StreamedBlocks(tiny_decoder, out, job="one")
    compress_blocks(storage.model, WINDOWS, counting, statistic, tokens_per_batch=24, storage=storage)
    storage.complete()
    assert calls[0].startswith(died_at.partition(".self_attn")[0].partition(".mlp")[0])  # finished blocks stay finished
    stream(tiny_decoder, tmp_path / "whole", "sparsegpt", strength)
    for path in sorted((tmp_path / "whole").glob("*.safetensors")):
        once, again = load_file(path), load_file(out / path.name)
        assert all(torch.equal(once[key], again[key]) for key in once | again)


def test_an_unfinished_job_of_another_kind_is_started_anew(tiny_decoder: Path, tmp_path: Path):
    out = tmp_path / "out"
    storage = StreamedBlocks(tiny_decoder, out, job="one")
    with storage.hold(0) as block:
        storage.finished(0, block)
    assert StreamedBlocks(tiny_decoder, out, job="one").resume()[0] == 1
    assert StreamedBlocks(tiny_decoder, out, job="another").resume()[0] == 0
    stream(tiny_decoder, out, "magnitude", Strength("sparsity", 0.5), job="another")
    assert StreamedBlocks.is_complete(out, "another")
    StreamedBlocks(tiny_decoder, out, job="third")
    assert not (out / INDEX_FILE).exists()  # a kill from now on leaves nothing that looks complete


def test_a_folder_that_another_program_wrote_is_no_complete_job(tmp_path: Path):
    for index in ('{"weight_map": {}}', '{"metadata": {"total_size": 1}, "weight_map": {}}'):
        (tmp_path / INDEX_FILE).write_text(index)
        assert not StreamedBlocks.is_complete(tmp_path, "one")


def test_one_block_at_a_time_holds_memory(tiny_decoder: Path):
    storage = StreamedBlocks(tiny_decoder)
    assert all(parameter.is_meta for parameter in storage.blocks.parameters())
    with storage.hold(1) as block:
        assert not any(parameter.is_meta for parameter in block.parameters())
        assert all(parameter.is_meta for parameter in storage.blocks[0].parameters())
    assert all(parameter.is_meta for parameter in storage.blocks.parameters())


def test_weights_of_a_folder_are_those_of_the_loaded_model(tiny_decoder: Path):
    streamed = {name: matrix.clone() for name, matrix in StreamedBlocks(tiny_decoder).weights()}
    loaded = decoder_weights(AutoModelForCausalLM.from_pretrained(tiny_decoder))
    assert streamed.keys() == loaded.keys()
    assert all(torch.equal(streamed[name], weight.matrix) for name, weight in loaded.items())


def test_a_checkpoint_that_does_not_fill_the_model_is_refused_by_name(tiny_decoder: Path, tmp_path: Path):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny_decoder / name).read_bytes())
    stored = load_file(tiny_decoder / "model.safetensors")
    renamed = {key.replace("mlp.up_proj", "mlp.w3"): value for key, value in stored.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    missing = r"3 of .* weights are missing in the checkpoint: model\.layers\.0\.mlp\.up_proj\.weight"
    with pytest.raises(ValueError, match=missing):
        StreamedBlocks(tmp_path)


@pytest.mark.torture
def test_a_model_larger_than_the_memory_it_may_use(tmp_path: Path):
    """A 126 MB model is compressed by a process that takes at most 85 MB beyond what it has after its imports.

    Pages of the model's files that are mapped and not written to are no memory that is taken: they can go at any time.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=512, intermediate_size=1024, num_hidden_layers=12, num_attention_heads=4,
        max_position_embeddings=32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model", max_shard_size="15MB")
    program = textwrap.dedent("""
        import sys, threading, time
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        from llm_tasks.methods import METHODS, Options, Strength
        from pruning.blocks import StreamedBlocks
        from pruning.walk import compress_blocks
        from transformers.models.llama import modeling_llama
        def taken():
            return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1e3
        peak = before = taken()
        def watch():
            global peak
            while True:
                peak = max(peak, taken())
                time.sleep(0.001)
        threading.Thread(target=watch, daemon=True).start()
        storage = StreamedBlocks(Path(sys.argv[1]), Path(sys.argv[2]), job="one")
        method, strength = METHODS["wanda"], Strength("sparsity", 0.5)
        compress_blocks(storage.model, torch.ones(2, 16, dtype=torch.int64),
                        lambda W, X, _: method.compress(W, X, strength, Options()), method.statistic, storage=storage)
        storage.complete()
        print(peak - before)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "model", tmp_path / "out"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 5 < float(done.stdout) < 85  # one block takes 10.5 MB
    index = json.loads((tmp_path / "out" / INDEX_FILE).read_text())
    assert len(set(index["weight_map"].values())) == 13
    weights = list(StreamedBlocks(tmp_path / "out").weights())
    assert all((matrix == 0).float().mean() == 0.5 for _, matrix in weights)
