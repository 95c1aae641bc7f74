"""A language model for lm-eval: log-likelihoods and answers through the bounded cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from tqdm import tqdm

from edgemllm.commands.perplexity.scoring import losses, predictions
from edgemllm.commands.recall.run import branch
from edgemllm.harness.arguments import asked, sampling
from edgemllm.harness.generation import generate
from edgemllm.launch import prepare
from edgemllm.models.chat import Sampling
from edgemllm.session import Session

Scored = tuple[float, bool]


class LanguageModel(TemplateLM):  # type: ignore[misc]
    """Reads every context of a task in chunks, with eviction between them, and nothing is truncated.

    `options` are keywords of `edgemllm.open`. `batch_size` is taken from the harness, and is 1 here.
    """

    def __init__(
        self,
        pretrained: str = "demo",
        *,
        add_bos_token: bool = False,
        max_gen_toks: int = 256,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.session = prepare(asked(pretrained, options)).open()
        self.tokenizer = self.session.family.tokenizer
        self._special, self._most = add_bos_token, max_gen_toks

    @property
    def eot_token_id(self) -> int:
        """Return the token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Return what stands before a text that has no context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        """Return a name for the harness's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens of a text."""
        special = self._special if add_special_tokens is None else add_special_tokens
        ids: list[int] = self.tokenizer(string, add_special_tokens=special)["input_ids"]
        return ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the model's chat template writes it."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text: one stream through one cache, whatever its length."""
        found = []
        for request in tqdm(requests, desc="texts", disable=disable_tqdm):
            self.session.clear()
            ids = [self.prefix_token_id, *self.tok_encode(request.args[0], add_special_tokens=False)]
            found.append(-float(losses(self.session, ids).sum()))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return an answer to each context."""
        found = []
        for request in tqdm(requests, desc="answers", disable=disable_tqdm):
            context, given = request.args
            keywords, stops = sampling(given, self._most)
            self._read(self.tok_encode(context))
            found.append(generate(self.session, Sampling(**keywords), stops))
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[Scored]:
        """Return log-likelihoods and whether they are the greedy choice; a context is read once for all its continuations."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (_pair, context, _continuation) in enumerate(requests):
            groups.setdefault(tuple(context), []).append(number)
        found: dict[int, Scored] = {}
        for context_ids, numbers in tqdm(groups.items(), desc="contexts", disable=disable_tqdm):
            self._read(context_ids)
            for number in numbers:
                pair, _context, continuation = requests[number]
                session = self.session if number == numbers[-1] else branch(self.session)
                found[number] = _scored(session, continuation)
                self.cache_hook.add_partial("loglikelihood", pair, found[number])
        return [found[number] for number in range(len(requests))]

    @torch.inference_mode()
    def _read(self, ids: Sequence[int]) -> None:
        """Take in a context as a prompt, in an empty cache."""
        session = self.session
        session.clear()
        session.cache.begin_prompt()
        session.feed(session.family.text(ids, session.position))
        session.policy.after_prefill(session.cache.managed)
        session.stopped = False


@torch.inference_mode()
def _scored(session: Session, ids: Sequence[int]) -> Scored:
    total, greedy = 0.0, True
    for states, targets in predictions(session, ids):
        logits = session.family.logits(states[None])[0].float()
        total += float(logits.log_softmax(-1).gather(-1, targets[:, None]).double().sum())
        greedy = greedy and bool((logits.argmax(-1) == targets).all())
    return total, greedy
