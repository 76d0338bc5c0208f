"""Broken options, for test_broken_inputs.py."""

import json
from collections.abc import Callable
from pathlib import Path

from broken import Assets, Broken
from method_lists import calibrated, obeying, taking

PERPLEXITY, OWN = "llm_tasks.perplexity", "llm_tasks.own_task"
SETTING2, SETTING5 = "llm_tasks.setting2_option_count", "llm_tasks.setting5_human_gap"
GLUE = "GLUE_tasks.Glue_prune_oneshot"
CHOICES = {"question": "One?", "choices": ["a", "b"], "answer": 0}
ANSWERS = {"question": "One?", "answers": ["a"]}


def language_model(*words: str) -> Callable[[Path, Assets], list[str]]:
    """Options of a script without training that has a sound model; {text} in a word is a sound text."""

    def make(folder: Path, assets: Assets) -> list[str]:
        return ["--model_name_or_path", str(assets.decoder), *(word.format(text=assets.text) for word in words)]

    return make


def own_task(row: dict, *words: str) -> Callable[[Path, Assets], list[str]]:
    """Options of own_task.py with a task of two items."""

    def make(folder: Path, assets: Assets) -> list[str]:
        (folder / "task.jsonl").write_text(2 * (json.dumps(row) + "\n"))
        return language_model("--task_file", str(folder / "task.jsonl"), *words)(folder, assets)

    return make


def fine_tuning(*words: str) -> Callable[[Path, Assets], list[str]]:
    def make(folder: Path, assets: Assets) -> list[str]:
        train, validation = map(str, assets.sentences)
        files = ["--train_file", train, "--validation_file", validation]
        return ["--model_name_or_path", str(assets.encoder), *files, *words]

    return make


def strengths(compression: str, *words: str) -> Callable[[Path, Assets], list[str]]:
    return language_model("--text", "{text}", "--calibration", "{text}", "--compression", compression, *words)


def uncalibrated(compression: str, *words: str) -> Callable[[Path, Assets], list[str]]:
    return language_model("--text", "{text}", "--compression", compression, *words)


LM_EVAL = ("--lm_eval_tasks", "piqa")
OF_LM_EVAL = [
    Broken("a file and tasks of lm-eval", OWN, own_task(CHOICES, *LM_EVAL),
           ("--task_file", "--lm_eval_tasks piqa takes its place")),
    Broken("examples of lm-eval for a file", OWN, own_task(CHOICES, "--num_fewshot", "5"),
           ("--num_fewshot 5 goes with --lm_eval_tasks",)),
    Broken("a reading of files for tasks of lm-eval", OWN, language_model(*LM_EVAL, "--answer_mode", "cloze"),
           ("--answer_mode cloze goes with --task_file", "say this themselves")),
    Broken("people's scores without their order", OWN, own_task(CHOICES, "--human_scores", "all=0.9"),
           ("--difficulty human and --human_scores go together",)),
    Broken("a score of people in percent", OWN,
           own_task(CHOICES, "--difficulty", "human", "--human_scores", "all=95"),
           ("'all=95' is not LEVEL=SCORE", "a fraction above 0, up to 1")),
    Broken("people's scores of another level", OWN,
           own_task(CHOICES, "--difficulty", "human", "--human_scores", "easy=0.9"),
           ("--human_scores names easy; the levels are all",)),
]  # fmt: skip
UNOBEYED = [
    Broken("options of settings 4 and 5 in setting 2", SETTING2, language_model("--shots", "0", "--tasks", "piqa"),
           ("--shots is obeyed by setting 4", "asked for is setting 2")),
    Broken("an option of setting 4 in settings 2 and 5", SETTING2,
           language_model("--settings", "2", "5", "--shot_order", "file"),
           ("--shot_order is obeyed by setting 4", "asked for is setting 2, 5")),
    Broken("worked examples for setting 5", SETTING5, language_model("--num_shots", "5"),
           ("--num_shots is obeyed by setting 2, 6",)),
    Broken("a judge of written answers where options are chosen", SETTING2, language_model("--answer_metric", "f1"),
           ("--answer_metric is obeyed by setting 3, 6",)),
    Broken("length of answers in the default itself", SETTING5, language_model("--max_new_tokens", "32"),
           ("--max_new_tokens is obeyed by setting 3, 6",)),
    Broken("per character of letters", SETTING2, language_model("--length_normalized"),
           ("--length_normalized is obeyed by --answer_mode cloze",)),
    Broken("per character of letters, by name", SETTING5,
           language_model("--answer_mode", "letter", "--length_normalized"),
           ("--length_normalized is obeyed by --answer_mode cloze",)),
    Broken("per character of letters in an own task", OWN, own_task(CHOICES, "--length_normalized"),
           ("--length_normalized is obeyed by --answer_mode cloze",)),
    Broken("a judge of written answers for choices", OWN, own_task(CHOICES, "--answer_metric", "f1"),
           ("--answer_metric f1 is for items with 'answers'", "task.jsonl")),
    Broken("an answer's length for choices", OWN, own_task(CHOICES, "--min_new_tokens", "8"),
           ("--min_new_tokens 8 is for items with 'answers'",)),
    Broken("an answer mode for written answers", OWN, own_task(ANSWERS, "--answer_mode", "cloze"),
           ("--answer_mode cloze is for items with 'choices'", "task.jsonl")),
    Broken("per character of written answers", OWN, own_task(ANSWERS, "--length_normalized"),
           ("--length_normalized is for items with 'choices'",)),
    Broken("groups for wanda", PERPLEXITY, strengths("wanda", "--sparsity", "0.5", "--group_size", "64"),
           (f"--group_size is obeyed by --compression {obeying('group_size')}", "asked for is wanda")),
    Broken("groups in the default itself", PERPLEXITY, strengths("wanda", "--sparsity", "0.5", "--group_size", "128"),
           (f"--group_size is obeyed by --compression {obeying('group_size')}",)),
    Broken("activation order for rtn", PERPLEXITY, uncalibrated("rtn", "--bits", "4", "--act_order"),
           (f"--act_order is obeyed by --compression {obeying('act_order')}",)),
    Broken("damping for magnitude", PERPLEXITY, uncalibrated("magnitude", "--sparsity", "0.5", "--damping", "0.1"),
           (f"--damping is obeyed by --compression {obeying('damping')}", "asked for is magnitude")),
    Broken("statistics group by group for magnitude", PERPLEXITY,
           uncalibrated("magnitude", "--sparsity", "0.5", "--true_sequential"),
           (f"--true_sequential is obeyed by --compression {calibrated()}", "asked for is magnitude")),
    Broken("a scope for gptq", PERPLEXITY, strengths("gptq", "--bits", "4", "--magnitude_scope", "global"),
           ("--magnitude_scope is obeyed by --compression magnitude",)),
    Broken("a scope for groups", PERPLEXITY,
           uncalibrated("magnitude", "--nm_ratio", "2:4", "--magnitude_scope", "global"),
           ("--magnitude_scope ranks weights by --sparsity",)),
    Broken("a column of a plain text", PERPLEXITY, language_model("--text", "a.txt.gz", "--text_field", "context"),
           ("--text_field names a column of a jsonl or parquet file", "has none")),
    Broken("a column of the calibration's plain text", PERPLEXITY,
           strengths("wanda", "--sparsity", "0.5", "--calibration", "a.txt", "--calibration_field", "passage"),
           ("--calibration_field names a column of a jsonl or parquet file",)),
    Broken("bits for wanda", PERPLEXITY, strengths("wanda", "--sparsity", "0.5", "--bits", "4"),
           (f"--bits is taken by --compression {taking('bits')}",)),
    Broken("values for a template that is not used", OWN,
           own_task(CHOICES, "--chat_template_kwargs", '{{"enable_thinking": false}}'),
           ("--chat_template_kwargs", "goes with --chat_template")),
    Broken("values for a template that are a list", OWN,
           own_task(CHOICES, "--chat_template", "--chat_template_kwargs", "[1]"),
           ("--chat_template_kwargs", "'[1]' is no JSON object")),
    Broken("a tracker without tracking", GLUE, fine_tuning("--report_to", "tensorboard"),
           ("--report_to tensorboard goes with --with_tracking",)),
    Broken("warm-up of a constant rate", GLUE,
           fine_tuning("--lr_scheduler_type", "constant", "--num_warmup_steps", "3"),
           ("--num_warmup_steps", "--lr_scheduler_type constant has none")),
]  # fmt: skip


def pruned(*words: str) -> Callable[[Path, Assets], list[str]]:
    """Magnitude at one sparsity, with further options."""
    return uncalibrated("magnitude", "--sparsity", "0.5", *words)


def allocated(content: str, *words: str) -> Callable[[Path, Assets], list[str]]:
    """Magnitude by a file of sparsities with this content."""

    def make(folder: Path, assets: Assets) -> list[str]:
        (folder / "mine.json").write_text(content)
        return pruned("--allocation", str(folder / "mine.json"), *words)(folder, assets)

    return make


LAYERS = [
    Broken("a block that there is not", PERPLEXITY, pruned("--only_layers", "0,90"),
           ("--only_layers 0,90: '90' names no weight", "blocks 0 to", "down_proj")),
    Broken("a range beyond the last block", PERPLEXITY, pruned("--skip_layers", "1-90"),
           ("--skip_layers 1-90: '1-90' names no weight", "blocks 0 to")),
    Broken("a name that no weight has", PERPLEXITY, pruned("--only_layers", "gate"),
           ("--only_layers gate: 'gate' names no weight", "self_attn.q_proj")),
    Broken("all blocks skipped", PERPLEXITY, pruned("--skip_layers", "mlp,self_attn"),
           ("--skip_layers mlp,self_attn leaves no weight to compress",)),
    Broken("a range that goes down", PERPLEXITY, pruned("--only_layers", "5-3"), ("--only_layers", "write 3-5")),
    Broken("an empty layer", PERPLEXITY, pruned("--only_layers", "1,"), ("--only_layers", "has an empty part")),
    Broken("layers of the dense model", PERPLEXITY, language_model("--text", "{text}", "--only_layers", "1"),
           ("--only_layers is obeyed by --compression", "asked for is dense")),
    Broken("layers of a packed checkpoint", PERPLEXITY,
           uncalibrated("rtn", "--bits", "4", "--export", "gptqmodel", "--only_layers", "1"),
           ("--export gptqmodel packs all weights: no --only_layers",)),
    Broken("no such allocation", PERPLEXITY, pruned("--allocation", "olw"),
           ("--allocation olw", "allowed: uniform, owl or a JSON file")),
    Broken("OWL for groups", PERPLEXITY,
           strengths("wanda", "--nm_ratio", "2:4", "--sparsity", "0.5", "--allocation", "owl"),
           ("--allocation owl spreads --sparsity over the weights; --nm_ratio",)),
    Broken("OWL for bits", PERPLEXITY, strengths("gptq", "--bits", "4", "--allocation", "owl"),
           ("--allocation is obeyed by --compression", "asked for is gptq")),
    Broken("OWL for ranks", PERPLEXITY,
           strengths("wanda", "low_rank", "--sparsity", "0.5", "--rank", "2", "--allocation", "owl"),
           ("--allocation owl spreads --sparsity over the weights; --rank",)),
    Broken("OWL with one threshold", PERPLEXITY, pruned("--allocation", "owl", "--magnitude_scope", "global"),
           ("--magnitude_scope global spreads the sparsity itself; allowed: layer",)),
    Broken("OWL beyond none", PERPLEXITY,
           strengths("wanda", "--sparsity", "0.05", "--allocation", "owl"),
           ("--sparsity 0.05: blocks get 0.05 - 0.08", "leaves [0, 1)", "--owl_range")),
    Broken("OWL's range without OWL", PERPLEXITY, pruned("--owl_range", "0.1"),
           ("--owl_range goes with --allocation owl", "asked for is uniform")),
    Broken("OWL's outliers at no number", PERPLEXITY, pruned("--allocation", "owl", "--owl_outliers", "nan"),
           ("--owl_outliers: nan is outside",)),
    Broken("a file of another model's names", PERPLEXITY, allocated('{"h.0.attn.c_attn": 0.5}'),
           ("mine.json: 'h.0.attn.c_attn' names no weight", "blocks 0 to")),
    Broken("a file of another model's blocks", PERPLEXITY, allocated('{"90": 0.5}'), ("mine.json: '90' names no",)),
    Broken("a file with a sparsity of 1", PERPLEXITY, allocated('{"0": 1}'),
           ("mine.json: the sparsity of '0' is 1", "[0, 1)")),
    Broken("a file with a negative sparsity", PERPLEXITY, allocated('{"0": -0.5}'), ("'0' is -0.5", "[0, 1)")),
    Broken("a file that is cut off", PERPLEXITY, allocated('{"0": 0.5'), ("mine.json: no valid JSON",)),
    Broken("a file of another total", PERPLEXITY, allocated('{"mlp": 0.1, "self_attn": 0.1}'),
           ("mine.json: it names every weight, and 0.1000 of them in all; --sparsity is 0.5",)),
    Broken("a file that leaves too much", PERPLEXITY, allocated('{"mlp": 0.0}'), ("--sparsity 0.5 in all leaves",)),
    Broken("a file for layers that stay dense", PERPLEXITY, allocated('{"0": 0.4}', "--only_layers", "1"),
           ("mine.json: '0' names", "leaves dense")),
]  # fmt: skip

PLACES = [
    Broken("a data folder that nothing reads", OWN, own_task(CHOICES, "--data_dir", "nowhere"),
           ("--data_dir nowhere is no folder",)),
    Broken("a list and a dry run", OWN, own_task(CHOICES, "--list_cells", "--dry_run"),
           ("--dry_run: not allowed with argument --list_cells",)),
    Broken("a folder of the kernel", OWN, own_task(CHOICES, "--output_dir", "/proc/run"),
           ("--output_dir /proc/run: /proc ",)),
] + [
    Broken(f"a folder named {template}", OWN,
           own_task(CHOICES, "--output_dir", template.replace("{", "{{").replace("}", "}}")),
           (f"--output_dir {template}: a placeholder is a name in braces and nothing else, such as {{seed}}",))
    for template in ("x/{seed", "x/}", "{", "{seed!r}", "{seed!x}", "{seed:d}", "{seed:{strength}}")
]  # fmt: skip

VALUES = [
    Broken(f"sparsity {value}", PERPLEXITY, strengths("wanda", f"--sparsity={value}"),
           (f"--sparsity: {value} is outside [0, 1)",))
    for value in ("nan", "inf", "-inf", "1e400", "-0.1", "1")
] + [
    Broken(f"ratio {value}", PERPLEXITY, strengths("wanda", f"--nm_ratio={value}"), (f"--nm_ratio: '{value}'",))
    for value in ("8:6", "0:4", "4:4", "2-4", "2:4:8", "-2:4", "2:", "2.0:4", "24", "²:4")
] + [
    Broken("damping that is no number", PERPLEXITY, strengths("gptq", "--bits", "4", "--damping", "nan"),
           ("--damping: nan is outside [0, 1]",)),
    Broken("rank 0", PERPLEXITY, uncalibrated("low_rank", "--rank", "0"), ("--rank: 0 is outside",)),
    Broken("rank 2.5", PERPLEXITY, uncalibrated("low_rank", "--rank", "2.5"), ("--rank: '2.5' is no int",)),
    Broken("a rank that is full", PERPLEXITY, uncalibrated("low_rank", "--rank", "4096"),
           ("--rank 4096", "allowed: 1 to")),
    Broken("groups of 0", PERPLEXITY, strengths("gptq", "--bits", "4", "--group_size", "0"),
           ("--group_size: '0' is neither",)),
    Broken("groups of ²", PERPLEXITY, strengths("gptq", "--bits", "4", "--group_size", "²"), ("--group_size: '²'",)),
    Broken("bits 1", PERPLEXITY, strengths("gptq", "--bits", "1"), ("--bits: 1 is outside [2, 16]",)),
    Broken("no bits at all", PERPLEXITY, strengths("gptq", "--bits"), ("--bits: expected at least one argument",)),
    Broken("blocks of 0", PERPLEXITY, strengths("gptq", "--bits", "4", "--block_size", "0"), ("--block_size: 0",)),
    Broken("a negative seed", PERPLEXITY, language_model("--text", "{text}", "--seed", "-1"), ("--seed", "-1")),
    Broken("no tokens per batch", PERPLEXITY, language_model("--text", "{text}", "--tokens_per_batch", "0"),
           ("--tokens_per_batch: 0 is outside",)),
    Broken("windows of one token", PERPLEXITY, language_model("--text", "{text}", "--seq_len", "1"),
           ("--seq_len 1: the model takes 2 to",)),
    Broken("windows beyond the model", PERPLEXITY, language_model("--text", "{text}", "--seq_len", "1000000"),
           ("--seq_len 1000000: the model takes 2 to",)),
    Broken("no items", SETTING2, language_model("--max_items", "0"), ("--max_items: 0 is outside",)),
    Broken("an unknown setting", SETTING2, language_model("--settings", "77"), ("--settings: invalid choice: 77",)),
    Broken("answers that must be longer than they may", OWN,
           own_task(ANSWERS, "--min_new_tokens", "9", "--max_new_tokens", "8"),
           ("--min_new_tokens 9: allowed up to --max_new_tokens 8",)),
    Broken("no room for text in fine-tuning", GLUE, fine_tuning("--max_length", "3"),
           ("--max_length 3", "puts 3 tokens around a pair of texts", "allowed: 5 or more")),
    Broken("a rate that is no number", GLUE, fine_tuning("--learning_rate", "nan"), ("--learning_rate: nan",)),
    Broken("an endless number of epochs", GLUE, fine_tuning("--num_train_epochs", "1e400"), ("--num_train_epochs",)),
]  # fmt: skip

EMPTY = [
    Broken(f"an empty --{option} of {script.rpartition('.')[2]}", script, make(f"--{option}="),
           (f"--{option}", "'' is empty"))
    for script, make, options in (
        (PERPLEXITY, language_model, "output_dir data_dir text text_field calibration model_name_or_path"),
        (OWN, language_model, "task_file task_name include_path lm_eval_tasks"),
        (GLUE, fine_tuning, "output_dir data_dir train_file model_name_or_path"),
    )
    for option in options.split()
] + [
    Broken(f"a folder with the list's CRLF, {script.rpartition('.')[2]}", script, make("--output_dir", "runs/a\r"),
           ("--output_dir", r"'runs/a\r' ends in a carriage return", "CRLF"))
    for script, make in ((PERPLEXITY, language_model), (GLUE, fine_tuning))
]  # fmt: skip

CASES: list[Broken] = [*OF_LM_EVAL, *UNOBEYED, *LAYERS, *PLACES, *VALUES, *EMPTY]
