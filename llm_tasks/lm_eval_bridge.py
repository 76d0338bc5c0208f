"""The engine as a model of lm-evaluation-harness: its tasks, prompts and scores, evaluated faster.

    from lm_eval import simple_evaluate
    from llm_tasks.lm_eval_bridge import EngineLM

    lm = EngineLM(pretrained="Qwen/Qwen3-1.7B", dtype="float32")
    results = simple_evaluate(model=lm, tasks=["arc_easy", "gsm8k"])

EngineLM takes what lm-eval's own HFLM takes. After the import, `model="junk_dna"` names it in simple_evaluate too. It
needs lm-evaluation-harness: python -m pip install -r requirements-lm-eval.txt. own_task.py --lm_eval_tasks does not
need this file: it measures the tasks as levels (tasks/lm_eval_levels.py).
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from llm_tasks.engine.log_likelihood import Scores, log_likelihoods
from llm_tasks.engine.packing import Continuation, distinct_reads
from llm_tasks.engine.proof import scoring_ways
from llm_tasks.engine.request_tokens import RequestEncoder
from llm_tasks.engine.stop_texts import answers_until, not_obeyed
from llm_tasks.option_values import tokens_scored_at_once
from llm_tasks.tasks.lm_eval_tasks import not_greedy, stop_of

logger = logging.getLogger(__name__)


def _tell(reason: str, what: str) -> None:
    logger.warning("%s: these %s are computed by lm-eval's own HFLM", reason, what)


@register_model("junk_dna")
class EngineLM(HFLM):
    """A decoder language model whose requests the engine computes: shared beginnings once, little padding.

    Requests that it does not compute (sampling, beams, thoughts that are cut off, truncated answers, encoder-decoder
    models) are HFLM's own, which a line says. Log-likelihoods are HFLM's to rounding.

    Args:
        args, kwargs: as HFLM takes them; batch_size is of what HFLM computes itself.
        tokens_per_batch: tokens computed at once; None: what suits the device.
        plain: take none of the engine's fast paths.
    """

    def __init__(self, *args: Any, tokens_per_batch: int | None = None, plain: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model.eval()
        self._tokens_per_batch = tokens_scored_at_once(tokens_per_batch, torch.device(self.device))
        self._plain = plain

    @property
    def request_encoder(self) -> RequestEncoder:
        """Makes tokens of requests as HFLM does with the same arguments."""
        return RequestEncoder(self.tokenizer, self.max_length, self.add_bos_token, self.custom_prefix_token_id)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether the model would choose it."""
        if self.backend != "causal" or self.enable_thinking:
            _tell("an encoder-decoder model, or thoughts that are cut off", "log-likelihoods")
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        pairs = [request.args for request in requests]
        answers = self._answers(self._scored(self.request_encoder.continuations(pairs)))
        for pair, answer in zip(pairs, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str] | None, list[int], list[int]]], disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:  # fmt: skip
        if self.backend != "causal":
            _tell("an encoder-decoder model", "log-likelihoods")
            return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        asked = []
        for _, context, continuation in requests:
            tokens = tuple([*context, *continuation][-(self.max_length + 1) :])
            asked.append(Continuation(tokens, len(tokens) - len(continuation)))
        return self._answers(self._scored(asked))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text."""
        if self.backend != "causal":
            _tell("an encoder-decoder model", "log-likelihoods")
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        texts = [request.args[0] for request in requests]
        windows = self.request_encoder.windows(texts)
        values = iter(self._scored([part for own in windows for part in own], greedy=False).log_likelihood.tolist())
        totals = [float(sum(next(values) for _ in own)) for own in windows]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The greedy answer to each prompt up to its stop; HFLM's own where not greedy."""
        if reason := self._not_greedy([request.args[1] for request in requests]):
            _tell(reason, "answers")
            return super().generate_until(requests, disable_tqdm=disable_tqdm)
        texts = [request.args[0] for request in requests]
        stops = [stop_of(request.args[1], self.tok_decode(self.eot_token_id, skip_special_tokens=False),
                         self.max_gen_toks) for request in requests]  # fmt: skip
        prompts = self.request_encoder.prompts(texts, [stop.max_new_tokens for stop in stops])
        answers, _ = answers_until(
            self.model, self.tokenizer, prompts, stops, self._tokens_per_batch, self._precision, None
        )
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    def _not_greedy(self, all_kwargs: Sequence[dict[str, Any]]) -> str:
        """Why the engine does not answer requests; empty where it does."""
        if self.backend != "causal" or self.think_end_token is not None or self.enable_thinking or self.truncation:
            return "an encoder-decoder model, thoughts that are cut off, or truncation"
        if fields := not_obeyed(self.model.generation_config):
            return f"the model's generation config has {', '.join(fields)}"
        for kwargs in all_kwargs:
            if reason := not_greedy(kwargs):
                return reason
        return ""

    def _scored(self, continuations: list[Continuation], greedy: bool = True) -> Scores:
        ways = scoring_ways(self.model, distinct_reads(continuations), self._plain)
        return log_likelihoods(
            self.model, continuations, self._tokens_per_batch, self._precision, ways, greedy=greedy
        )  # fmt: skip

    @staticmethod
    def _answers(scores: Scores) -> list[tuple[float, bool]]:
        return list(zip(scores.log_likelihood.tolist(), scores.greedy.tolist(), strict=True))

    @property
    def _precision(self) -> str:
        """Of a float32 model's matmuls: "bf16" where HFLM was given that as mixed_precision_dtype."""
        return "bf16" if self.mixed_precision_dtype == torch.bfloat16 else "no"
