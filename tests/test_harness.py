"""edgemllm in lm-eval and lmms-eval: their own evaluation of a small local task gives what a direct computation gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

import edgemllm
from edgemllm.commands.perplexity.scoring import losses
from edgemllm.models.loading import DEMO

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
FACT = "The lamp in the hall is red."
STORY = "The old man walked along the river and looked at the boats. He did not see the children who followed him. "
YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
{rest}
"""
UTILS = """
def visual(doc):
    return [doc["video"]]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def rounds(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    return [], "What is on the screen now?", round_idx == 2, previous_output, None

def process(doc, results):
    answers = results[0] if isinstance(results[0], list) else results
    return {"right": float(answers[0].strip() == doc["answer"])}
"""


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], rest: str) -> str:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(YAML.format(name=name, data=folder / f"{name}.jsonl", rest=rest))
    return name


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def lm_tasks(folder: Path) -> list[str]:
    rows = [{"text": f"{STORY * n}{FACT} {STORY * n}", "target": "x"} for n in (1, 3)]
    choices = 'doc_to_choice: [" red", " blue and green"]\ndoc_to_target: 0'
    return [
        write_task(folder, "own_choice", rows, f'output_type: multiple_choice\ndoc_to_text: "{{{{text}}}}"\n{choices}'),
        write_task(
            folder, "own_rolling", rows,
            'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
            "metric_list: [{metric: word_perplexity}]",
        ),
        write_task(
            folder, "own_answer", rows,
            'output_type: generate_until\ndoc_to_text: "{{text}}"\ndoc_to_target: "{{target}}"\n'
            'generation_kwargs: {until: ["."], max_gen_toks: 12}\nmetric_list: [{metric: exact_match}]',
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("options", [{"policy": "full"}, {"policy": "edge", "kv_budget": 64, "chunk": 16}])
def test_lm_eval_reports_what_the_model_says_of_each_token(options: dict[str, Any], tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="needs the package lm-eval")
    from lm_eval.tasks import TaskManager

    from edgemllm.harness.language import LanguageModel

    names, model = lm_tasks(tmp_path), LanguageModel("demo", **options)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    made = lm_eval.simple_evaluate(model, tasks=names, task_manager=manager, log_samples=True, bootstrap_iters=0)
    assert set(made["results"]) == set(names)
    tokenizer = model.tokenizer
    for sample in made["samples"]["own_choice"]:
        for (found, _), (context, choice) in zip(sample["filtered_resps"], sample["arguments"], strict=True):
            before = tokenizer(context.rstrip())["input_ids"]  # lm-eval's rule: spaces at the end belong to what follows
            after = tokenizer(context + choice)["input_ids"][len(before) :]
            assert float(found) == pytest.approx(said_of(before, after, options, prompt=True), abs=2e-3)
    for sample in made["samples"]["own_rolling"]:
        ids = tokenizer(sample["doc"]["text"])["input_ids"]
        expected = said_of([model.prefix_token_id], ids, options, prompt=False)
        assert sample["filtered_resps"][0] == pytest.approx(expected, abs=5e-3)
    for sample in made["samples"]["own_answer"]:
        session = edgemllm.open("demo", **options)
        read(session, session.family.tokenize(sample["doc"]["text"]))
        answer = "".join(session.answer(edgemllm.Sampling(max_tokens=12)))
        assert sample["filtered_resps"][0] == answer.partition(".")[0]


def read(session: edgemllm.Session, ids: list[int]) -> None:
    session.cache.begin_prompt()
    session.feed(session.family.text(ids, 0))
    session.policy.after_prefill(session.cache.managed)


@torch.inference_mode()
def said_of(before: list[int], ids: list[int], options: dict[str, Any], prompt: bool) -> float:
    """Return the log-likelihood of `ids` after `before`: of the stock model without our cache, or of a session of our own."""
    if options["policy"] == "full":
        stock = AutoModelForImageTextToText.from_pretrained(DEMO, dtype=torch.float32)
        logits = stock(input_ids=torch.tensor([[*before, *ids]])).logits[0, len(before) - 1 : -1]
        return float(logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None]).double().sum())
    session = edgemllm.open("demo", **options)
    if not prompt:
        return -float(losses(session, [*before, *ids]).sum())
    read(session, before)
    return -float(losses(session, ids).sum())


def test_lmms_eval_watches_as_chat_does_and_rounds_continue_in_one_cache(tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval.evaluator", reason="needs the package lmms-eval")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models.registry_v2 import ModelManifest
    from lmms_eval.tasks import TaskManager

    from edgemllm.harness import manifest
    from edgemllm.harness.multimodal import MultimodalModel

    assert isinstance(manifest(), ModelManifest)
    video = str(DEMO / "lecture.mp4")
    asked = json.loads((DEMO / "lecture.json").read_text())[:2]
    (tmp_path / "utils.py").write_text(UTILS)
    shared = (
        "doc_to_visual: !function utils.visual\ndoc_to_target: answer\nprocess_results: !function utils.process\n"
        "generation_kwargs: {max_new_tokens: 12, temperature: 0, do_sample: false}\n"
        "metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]\n"
    )
    rounds = "output_type: generate_until_multi_round\ndoc_to_text: !function utils.rounds"
    rows = [{"video": video, **each} for each in asked]
    names = [
        write_task(tmp_path, "own_slides", rows, f"{shared}output_type: generate_until\ndoc_to_text: !function utils.text"),
        write_task(tmp_path, "own_rounds", rows, f"{shared}{rounds}"),
    ]
    model = MultimodalModel("demo", policy="inf-mllm", kv_budget=512)
    made = simple_evaluate(
        model, tasks=names, task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False), log_samples=True
    )
    for number, each in enumerate(asked):
        session = edgemllm.open("demo", policy="inf-mllm", kv_budget=512)
        session.watch(edgemllm.Video.open(video))
        expected = ["".join(session.ask(question)).strip() for question in (each["question"], "What is on the screen now?")]
        [slides] = [sample for sample in made["samples"]["own_slides"] if sample["doc_id"] == number]
        [both] = [sample for sample in made["samples"]["own_rounds"] if sample["doc_id"] == number]
        assert slides["filtered_resps"] == expected[:1]
        assert both["filtered_resps"] in (expected, [expected])
    share = made["results"]["own_slides"]["right,none"]
    assert share == sum(sample["right"] for sample in made["samples"]["own_slides"]) / 2
