"""Pretrained models with a new head."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    ModernBertConfig,
    T5Config,
)

from GLUE_tasks import Glue_prune_oneshot
from GLUE_tasks.pretrained import load_pretrained
from harness import run_folder


def test_a_copy_is_bit_equal_but_for_the_head_which_comes_from_the_seed(tiny_encoder: Path):
    pretrained = load_pretrained(str(tiny_encoder), num_labels=3)
    assert pretrained.new_parameters == {"classifier.weight", "classifier.bias"}
    torch.manual_seed(123)  # the state of the generator does not matter
    one, same, other = pretrained.copy(1), pretrained.copy(1), pretrained.copy(2)
    for name, parameter in pretrained.model.named_parameters():
        copies = one.get_parameter(name), same.get_parameter(name), other.get_parameter(name)
        assert torch.equal(copies[0], copies[1])
        if name == "classifier.weight":
            assert not torch.equal(copies[0], copies[2])
            assert 0.5 < copies[0].std() / pretrained.model.config.initializer_range < 1.5
        elif name != "classifier.bias":
            assert all(torch.equal(parameter, copy) for copy in copies)
    assert (one.classifier.bias == 0).all()


SIZE = 256
T5 = T5Config(
    vocab_size=18, d_model=SIZE, d_kv=8, d_ff=24, num_layers=1, num_heads=2, eos_token_id=3, decoder_start_token_id=0
)
MODERN = ModernBertConfig(
    vocab_size=18, hidden_size=SIZE, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
    local_attention=8, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
)  # fmt: skip
# By architecture, the standard deviations that its code in transformers says, for any size of the head.
HEADS = {
    "T5": (T5, AutoModelForSequenceClassification, {
        "classification_head.dense.weight": SIZE**-0.5, "classification_head.out_proj.weight": SIZE**-0.5,
    }),
    "ModernBERT": (MODERN, AutoModelForSequenceClassification, {
        "head.dense.weight": 0.02 / 4**0.5, "classifier.weight": SIZE**-0.5,
    }),
    "ModernBERT, multiple choice": (MODERN, AutoModelForMultipleChoice, {"classifier.weight": SIZE**-0.5}),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_is_initialised_as_a_whole_is_drawn_as_transformers_does(name: str, tmp_path: Path):
    config, auto_class, expected = HEADS[name]
    AutoModel.from_config(config).save_pretrained(tmp_path)
    num_labels = 3 if auto_class is AutoModelForSequenceClassification else None
    pretrained = load_pretrained(str(tmp_path), num_labels, auto_class=auto_class)
    one, same, other = pretrained.copy(1), pretrained.copy(1), pretrained.copy(2)
    for parameter, std in expected.items():
        drawn = one.get_parameter(parameter).detach()
        assert float(drawn.std()) == pytest.approx(std, rel=0.15)
        assert torch.equal(drawn, same.get_parameter(parameter))
        assert not torch.equal(drawn, other.get_parameter(parameter))
    for parameter, value in pretrained.model.named_parameters():
        assert parameter in pretrained.new_parameters or torch.equal(value, one.get_parameter(parameter))


@pytest.mark.usefixtures("fresh_accelerator")
def test_runs_with_a_head_drawn_otherwise_are_others(
    tiny_encoder: Path, sentence_files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
):
    """As runs of earlier versions: args.json does not say how the head was drawn."""
    shutil.copytree(tiny_encoder, tmp_path / "t5")
    AutoModel.from_config(T5).save_pretrained(tmp_path / "t5")
    words = ["--train_file", str(sentence_files[0]), "--validation_file", str(sentence_files[1]), "--max_length", "16",
             "--max_train_steps", "1", "--mixed_precision", "no"]  # fmt: skip
    for model, code in ((tiny_encoder, 0), (tmp_path / "t5", 2)):
        folder = tmp_path / f"run_{model.name}"
        argv = ["--model_name_or_path", str(model), *words, "--output_dir", str(folder)]
        assert Glue_prune_oneshot.main(argv) == 0
        record = json.loads((folder / run_folder.ARGUMENTS_FILE).read_text())
        del record["arguments"]["head_arithmetic"]
        (folder / run_folder.ARGUMENTS_FILE).write_text(json.dumps(record))
        try:
            assert Glue_prune_oneshot.main(argv) == code
        except SystemExit as refused:
            assert refused.code == code
            assert "(head_arithmetic: 2 here, 1 there)" in capsys.readouterr().err
