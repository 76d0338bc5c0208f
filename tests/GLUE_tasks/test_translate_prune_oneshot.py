"""Translate_prune_oneshot.py end to end on a tiny random mBART, its data and its mistakes."""

import json
import shlex
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from of_runs import domains
from result_keys import assert_keys_are_told
from sacrebleu.metrics import BLEU
from transformers import AutoTokenizer

from analysis.contrasts import domain_table
from analysis.metrics import bleu_stderr, corpus_bleu
from GLUE_tasks import Translate_prune_oneshot, pretrained, translation, translation_data
from GLUE_tasks import options as script_options
from GLUE_tasks.translation_data import Pair
from harness import run_folder
from harness.data import Table

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

GERMAN, GUJARATI = Pair("de_DE", "en_XX"), Pair("gu_IN", "en_XX")
SOURCES = ["das", "buch", "ist", "gut", "schlecht", "und", "der", "film"]
TARGETS = ["the", "book", "is", "good", "bad", "and", "a", "film"]


@pytest.fixture(scope="module")
def tiny_mbart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random one-layer mBART with tied embeddings and a tokenizer for SOURCES and TARGETS."""
    from transformers import MBart50Tokenizer, MBartConfig, MBartForConditionalGeneration
    from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES

    pieces = ["<s>", "<pad>", "</s>", "<unk>", *(f"▁{word}" for word in (*SOURCES, *TARGETS[:-1])), "▁"]
    vocabulary = [(piece, 0.0) for piece in (*dict.fromkeys(pieces), *FAIRSEQ_LANGUAGE_CODES, "<mask>")]
    folder = tmp_path_factory.mktemp("tiny_mbart")
    tokenizer = MBart50Tokenizer(vocab=vocabulary)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = MBartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2, init_std=0.5,
    )  # fmt: skip
    MBartForConditionalGeneration(config).save_pretrained(folder)
    return folder


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def sentence_rows(count: int, seed: int) -> list[dict]:
    """Word by word translations, every third of them from the second language."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        words = draw.integers(len(SOURCES), size=draw.integers(4, 9))
        source, target = (" ".join(np.array(vocabulary)[words]) for vocabulary in (SOURCES, TARGETS))
        language = GUJARATI.source if number % 3 == 0 else GERMAN.source
        rows.append({"src": source, "tgt": target, "src_lang": language, "tgt_lang": "en_XX"})
    return rows


@pytest.fixture(scope="module")
def parallel_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training (24 rows) and validation file (15 rows), a third of them Gujarati."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    folder.mkdir()
    return write(folder / "train.jsonl", sentence_rows(24, 0)), write(folder / "validation.jsonl", sentence_rows(15, 1))


@pytest.fixture
def options(tiny_mbart: Path, parallel_files: tuple[Path, Path]) -> list[str]:
    return [
        "--model_name_or_path", str(tiny_mbart), "--noembed", "--train_file", str(parallel_files[0]),
        "--validation_file", str(parallel_files[1]), "--max_length", "16", "--max_new_tokens", "8", "--num_beams", "2",
        "--learning_rate", "1e-2", "--num_train_epochs", "2", "--mixed_precision", "no", "--seed", "41",
    ]  # fmt: skip


def run(*argv: object) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return Translate_prune_oneshot.main([str(word) for word in argv])


SWEEP = ["--pairs", "de_DE-en_XX", "gu_IN-en_XX", "--resources", "de_DE-en_XX=900", "gu_IN-en_XX=100", "--shots", "0",
         "8", "--sparse_method", "dense_transfer", "sparse_transfer", "--sparsity", "0", "0.5"]  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory, tiny_mbart, parallel_files) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    failed = run(
        "--model_name_or_path", tiny_mbart, "--noembed", "--train_file", parallel_files[0],
        "--validation_file", parallel_files[1], "--max_length", 16, "--max_new_tokens", 8, "--num_beams", 2,
        "--learning_rate", "1e-2", "--num_train_epochs", 2, "--mixed_precision", "no", "--seed", 41, *SWEEP,
        "--save_model", "--output_dir", root / "{shots}" / "{transfer}" / "{strength}",
    )  # fmt: skip
    assert failed == 0
    return root


def row(folder: Path, pair: Pair) -> dict:
    return next(row for row in run_folder.read_runs(folder) if row["level"] == str(pair))


def test_every_pair_is_a_level_with_its_share_of_what_pretraining_saw(swept: Path):
    assert_keys_are_told(swept)
    rows = run_folder.read_runs(swept)
    assert len(rows) == 2 * (1 + 2) * 2
    assert {(row["shots"], row["level"], row["difficulty"], row["num_examples"]) for row in rows} == {
        (shots, str(pair), difficulty, count)
        for shots in (0, 8) for pair, difficulty, count in ((GERMAN, 1 - 0.9, 10), (GUJARATI, 1 - 0.1, 5))
    }  # fmt: skip
    assert all(row["chance"] == 0 and row["metric"] == "bleu" for row in rows)
    assert {row["num_train_examples"] for row in rows if row["shots"]} == {16}
    run_folder.check_runs(rows)


def test_score_is_sacrebleus_of_the_stored_translations(swept: Path, parallel_files):
    folder = swept / "8" / "dense_transfer" / "dense"
    found, items = row(folder, GERMAN), run_folder.read_items(folder)
    rows = [json.loads(line) for line in parallel_files[1].read_text().splitlines()]
    references = [row["tgt"] for row in rows if row["src_lang"] == "de_DE"]
    metric = BLEU()
    translations = items["translation_de_DE-en_XX"].tolist()
    assert found["score"] == metric.corpus_score(translations, [references]).score / 100
    assert found["signature"] == str(metric.get_signature()) and "tok:13a" in found["signature"]
    assert found["eval_bleu_de_DE-en_XX"] == found["score"] > 0
    counts = items["bleu_counts_de_DE-en_XX"]
    assert counts.shape == (10, 10) and corpus_bleu(counts.sum(axis=0)) == pytest.approx(found["score"], abs=1e-12)
    assert not any(code in text for text in translations for code in ("en_XX", "</s>"))


def test_levels_tell_the_shots_and_the_error_of_their_own_sentences(swept: Path):
    rows = run_folder.read_runs(swept)
    assert {(row["shots"], row["train_rows"]) for row in rows} == {(0, 0), (8, 8)}
    for found in rows:
        assert found["stderr"] == bleu_stderr(run_folder.read_items(found["folder"])[f"bleu_counts_{found['level']}"])


def test_shots_are_drawn_by_seed_as_many_of_each_pair(options: list[str]):
    argv = [*options, "--shots", "5", "--output_dir", "x"]
    kind = Translate_prune_oneshot.task_kind(script_options.parse(Translate_prune_oneshot.make_parser(), argv))
    task = kind.load(kind.tasks[0])
    one, again, other = (task.choose_rows(24, {"seed": seed}) for seed in (1, 1, 2))
    assert one == again != other
    # Gujarati is the first in the file: 8 rows, then 16 of German
    assert [sum(row < 8 for row in chosen) for chosen in (one, other)] == [5, 5] and len(set(one)) == len(
        set(other)
    ) == 10


def test_the_translation_is_encoded_as_text_of_the_target_language(tiny_mbart: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_mbart)
    rows = Dataset.from_dict({"src": ["das buch"], "tgt": ["the book"]})
    found = translation_data.tokenize(rows, GERMAN, tokenizer, 16)
    tokens = [tokenizer.convert_ids_to_tokens(found[name][0]) for name in ("input_ids", "labels")]
    assert tokens == [["de_DE", "▁das", "▁buch", "</s>"], ["en_XX", "▁the", "▁book", "</s>"]]


def test_bleu_is_that_of_the_target_languages_tokenizer(options: list[str], tmp_path: Path):
    rows = [{**row, "src_lang": "en_XX", "tgt_lang": "zh_CN"} for row in sentence_rows(2, 1)]
    path = write(tmp_path / "chinese.jsonl", rows)
    assert run(*options, "--validation_file", path, "--sparse_method", "dense_transfer", "--output_dir", tmp_path) == 0
    assert "tok:zh" in row(tmp_path, Pair("en_XX", "zh_CN"))["signature"]


def test_the_split_of_the_hub_that_is_asked_for_is_evaluated(tiny_mbart: Path, monkeypatch: pytest.MonkeyPatch):
    def loaded(*_: str) -> dict[str, Dataset]:
        return {split: Dataset.from_dict({"translation": [{"de": split, "en": split}] * 3})
                for split in ("train", "validation", "test")}  # fmt: skip

    monkeypatch.setattr(datasets, "load_dataset", loaded)
    argv = [
        "--model_name_or_path",
        str(tiny_mbart),
        "--dataset_name",
        "opus",
        "--pairs",
        str(GERMAN),
        "--output_dir",
        "x",
    ]
    for words, split, pool in (
        ([], "validation", 3),
        (["--eval_split", "test", "--max_train_samples", "2"], "test", 2),
    ):
        args = script_options.parse(Translate_prune_oneshot.make_parser(), [*argv, *words])
        corpus, _ = Translate_prune_oneshot.load_corpus(args)
        assert set(corpus.validation[GERMAN]["src"]) == {split} and corpus.train[GERMAN]["src"][:] == ["train"] * pool


def test_without_shots_nothing_is_trained(swept: Path, tiny_mbart: Path):
    from safetensors.torch import load_file

    before = load_file(tiny_mbart / "model.safetensors")
    dense = load_file(swept / "0" / "dense_transfer" / "dense" / "model" / "model.safetensors")
    assert all(torch.equal(before[name], dense[name]) for name in before)
    found = row(swept / "0" / "sparse_transfer" / "0.5", GERMAN)
    assert found["num_steps"] == 0 and found["train_loss"] is None and found["num_train_examples"] == 0
    assert found["measured_sparsity"] == pytest.approx(0.5, abs=1e-3)
    trained = load_file(swept / "8" / "dense_transfer" / "dense" / "model" / "model.safetensors")
    assert not torch.equal(before["model.decoder.layers.0.fc1.weight"], trained["model.decoder.layers.0.fc1.weight"])


def test_tied_embeddings_are_not_pruned(swept: Path):
    """They are the output layer too, which is linear and bears another name."""
    from safetensors.torch import load_file

    saved = load_file(swept / "0" / "sparse_transfer" / "0.5" / "model" / "model.safetensors")
    pruned = {name for name, weight in saved.items() if weight.ndim == 2 and (weight == 0).float().mean() > 0.2}
    pruned.remove("final_logits_bias")  # zero in every mBART
    assert pruned and not any("embed" in name or "shared" in name or "lm_head" in name for name in pruned)
    assert {name.split(".")[1] for name in pruned} == {"encoder", "decoder"}


@pytest.mark.parametrize("shots", ["0", "8"])
def test_sparsity_0_translates_as_dense_does(swept: Path, shots: str):
    one, other = (swept / shots / name for name in ("dense_transfer/dense", "sparse_transfer/0"))
    for pair in (GERMAN, GUJARATI):
        texts = [run_folder.read_items(folder)[f"translation_{pair}"].tolist() for folder in (one, other)]
        assert texts[0] == texts[1]


def test_translations_are_those_of_generate_alone(swept: Path, parallel_files, tiny_mbart: Path):
    """One sentence at a time, without padding: the batches, the order and the target language are right."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder = swept / "8" / "dense_transfer" / "dense"
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_mbart, src_lang="gu_IN")
    rows = [json.loads(line) for line in parallel_files[1].read_text().splitlines()]
    sources = [row["src"] for row in rows if row["src_lang"] == "gu_IN"]
    expected = []
    for source in sources:
        first = tokenizer.convert_tokens_to_ids("en_XX")
        tokens = model.generate(**tokenizer(source, return_tensors="pt"), forced_bos_token_id=first, num_beams=2,
                                max_new_tokens=8, do_sample=False)  # fmt: skip
        assert tokens[0, 1] == first
        expected.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
    assert run_folder.read_items(folder)[f"translation_{GUJARATI}"].tolist() == expected


def test_runs_make_one_figure_with_a_condition_for_each_number_of_shots(swept: Path):

    rows = run_folder.read_runs(swept)
    table = domain_table(rows)
    assert list(dict.fromkeys(point["condition"] for point in table)) == ["no fine-tuning", "8 sentence pairs each"]
    assert [point["level"] for point in table if point["condition"] == "no fine-tuning"][::3] == list(
        map(str, (GERMAN, GUJARATI))
    )
    assert len(domains(rows).axes) == 2


def test_second_call_computes_nothing(swept, options, monkeypatch: pytest.MonkeyPatch):
    def load_pretrained(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(pretrained, "load_pretrained", load_pretrained)
    out = ["--save_model", "--output_dir", swept / "{shots}" / "{transfer}" / "{strength}"]
    assert run(*options, *SWEEP, *out) == 0


def test_list_cells_prints_the_same_runs(swept, options, capsys: pytest.CaptureFixture):
    out = ["--save_model", "--output_dir", swept / "{shots}" / "{transfer}" / "{strength}"]
    assert run(*options, *SWEEP, *out, "--list_cells") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert run(*shlex.split(lines[-1])[2:]) == 0
    assert "1 of 1 runs are complete" in capsys.readouterr().out


def test_one_pair_is_allowed_and_said(options, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("WARNING"):
        assert run(*options, "--pairs", "gu_IN-en_XX", "--sparse_method", "dense_transfer", "--num_beams", 1,
                   "--max_eval_samples", 2, "--output_dir", tmp_path) == 0  # fmt: skip
    assert "one pair of languages, so that there is nothing to compare it with" in caplog.text
    found = row(tmp_path, GUJARATI)
    assert found["num_examples"] == 2 and found["difficulty"] is None


@pytest.fixture
def error(options, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Run with more options; returns the last line it printed."""

    def load_pretrained(*_):
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr(pretrained, "load_pretrained", load_pretrained)

    def mistaken(*words: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(*options, "--output_dir", tmp_path / "out", *words)
        assert stopped.value.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    return mistaken


def test_language_that_the_tokenizer_lacks(error, tmp_path: Path):
    path = write(tmp_path / "klingon.jsonl", [{**sentence_rows(1, 0)[0], "src_lang": "tlh_KL"}])
    message = error("--validation_file", path)
    assert "'tlh_KL' in tlh_KL-en_XX is no language of the model's tokenizer; it has af_ZA ar_AR" in message


@pytest.mark.parametrize("lacking", ["src", "tgt", "tgt_lang"])
def test_missing_column(error, tmp_path: Path, lacking: str):
    rows = [{name: value for name, value in row.items() if name != lacking} for row in sentence_rows(3, 0)]
    path = write(tmp_path / "validation.jsonl", rows)
    message = error("--validation_file", path)
    assert f"{path} has no column {lacking!r}; it has " in message and "or 'translation' with --pairs" in message


@pytest.mark.parametrize("empty", ["  ", None])
def test_empty_reference(error, tmp_path: Path, empty: str | None):
    rows = sentence_rows(3, 0)
    rows[1]["tgt"] = empty
    path = write(tmp_path / "validation.jsonl", rows)
    assert f"{path}, line 2 (de_DE-en_XX) has no text in 'tgt'" in error("--validation_file", path)


def test_row_without_a_language(error, tmp_path: Path):
    rows = sentence_rows(3, 0)
    rows[2]["src_lang"] = None
    path = write(tmp_path / "validation.jsonl", rows)
    assert f"{path}, line 3 has no 'src_lang'" in error("--validation_file", path)


def test_model_that_cannot_translate(error, tiny_encoder: Path):
    message = error("--model_name_or_path", tiny_encoder)
    assert f"--model_name_or_path {tiny_encoder}: bert cannot translate; an encoder-decoder" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pairs", "en_XX"], "'en_XX' is no SOURCE-TARGET, such as en_XX-ro_RO"),
        (["--pairs", "en_XX-en_XX"], "'en_XX-en_XX' is no SOURCE-TARGET"),
        (["--pairs", "fr_XX-en_XX"], "there are no validation rows of fr_XX-en_XX; there are those of none"),
        (["--shots", "9"], "--shots 9: gu_IN-en_XX has 8 training rows; 9 are needed of every pair"),
        (["--shots", "8", "--max_train_samples", "6"], "has 6 training rows; 8 are needed"),
        (["--resources", "gu_IN-en_XX=many"], "'gu_IN-en_XX=many' is no SOURCE-TARGET=SENTENCES with a number above 0"),
        (["--resources", "gu_IN-en_XX=5"], "--resources lacks de_DE-en_XX; name every pair or none"),
        (["--dataset_name", "opus"], "give either --dataset_name or --validation_file"),
        (["--dataset_config", "de-en"], "--dataset_config goes with --dataset_name"),
        (["--eval_split", "test"], "--eval_split test goes with --dataset_name"),
        (["--validation_split_percentage", "10"], "translation draws --shots rows of each pair"),
        (["--shots", "0", "--max_train_steps", "5"], "--max_train_steps does not go with --shots 0"),
        (["--shots", "4", "--num_train_epochs", "0"], "--num_train_epochs 0: give --shots 0"),
        (["--sparsity", "0.5"], "--shots 0 trains nothing, so that sparse_to_dense is sparse_transfer; give that"),
    ],
)
def test_mistaken_options(error, words: list[str], message: str):
    assert message in error(*words)


def test_shots_without_training_rows(error, options):
    place = options.index("--train_file")
    del options[place : place + 2]
    assert "--shots 3 needs --train_file" in error("--shots", "3")


def test_hub_columns_are_read_by_the_language_before_the_region():
    texts = [{"en": "a film", "ro": "un film"}, {"en": "bad", "ro": "rau"}]
    data = Table("opus", "row", [1, 2], {"translation": texts})
    pairs = [Pair("en_XX", "ro_RO"), Pair("ro_RO", "en_XX"), Pair("en_XX", "gu_IN")]
    found = translation_data.read_pairs(data, pairs)
    assert {str(pair): rows[:] for pair, rows in found.items()} == {
        "en_XX-ro_RO": {"src": ["a film", "bad"], "tgt": ["un film", "rau"]},
        "ro_RO-en_XX": {"src": ["un film", "rau"], "tgt": ["a film", "bad"]},
    }
    with pytest.raises(ValueError, match="opus has a 'translation' column: give --pairs"):
        translation_data.read_pairs(data, [])


def test_hub_sets_join_their_configs_and_leave_out_empty_rows(monkeypatch: pytest.MonkeyPatch, caplog):
    def loaded(name: str, config: str) -> dict[str, Dataset]:
        source = config.partition("-")[0]
        texts = [{source: f"{source} {number}", "en": "" if number == 1 else f"en {number}"} for number in range(4)]
        return {split: Dataset.from_dict({"translation": texts}) for split in ("train", "test")}

    monkeypatch.setattr(datasets, "load_dataset", loaded)
    with caplog.at_level("WARNING"):
        corpus = translation_data.load_hub("lab/opus", ["de-en", "gu-en"], "test", [GERMAN, GUJARATI], pool=3)
    assert corpus.name == "opus" and "opus gu-en test: 1 rows without a text are left out" in caplog.text
    assert corpus.train[GUJARATI]["src"][:] == ["gu 0", "gu 2"]
    assert corpus.validation[GERMAN]["tgt"][:] == ["en 0", "en 2", "en 3"]


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_):
        raise ConnectionError("Couldn't reach the hub.")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match="--dataset_name opus: Couldn't reach the hub; without a hub, give --valid"):
        translation_data.load_hub("opus", [], "test", [GERMAN], None)


def test_targets_of_other_models():
    class M2M:
        src_lang = "en"

        def get_lang_id(self, code: str) -> int:
            return {"de": 7}[code]

    assert translation_data.target_token(M2M(), Pair("en", "de")) == 7
    assert translation_data.target_token(object(), Pair("en", "de")) is None  # Marian: one fixed direction
    assert translation_data.known_languages(object()) == []


def test_languages_without_spaces_are_cut_into_characters():
    assert [translation.tokenizer_for(code) for code in ("de_DE", "zh_CN", "ja_XX", "my_MM")] == [
        "13a", "zh", "char", "char",
    ]  # fmt: skip
    # NLLB's codes: Bosnian begins as Tibetan's code of two letters, Javanese as Japanese's.
    nllb = ("bos_Latn", "jav_Latn", "kmr_Latn", "jpn_Jpan", "khm_Khmr", "lao_Laoo", "yue_Hant", "zho_Hans", "bod_Tibt")
    assert {code for code in nllb if translation.bleu_arithmetic([code]) == 2} == {
        "bos_Latn", "jav_Latn", "kmr_Latn", "jpn_Jpan", "khm_Khmr", "lao_Laoo", "yue_Hant",
    }  # fmt: skip
    assert translation.bleu_arithmetic(["de_DE", "zh_CN", "ja_XX", "en"]) == 1
    assert [translation.tokenizer_for(code) for code in nllb] == ["13a"] * 3 + ["char"] * 3 + ["zh"] * 2 + ["char"]
    assert translation.bleu(["人生苦短"], ["人生苦短"], "zh").counts[0, 0] == 4
