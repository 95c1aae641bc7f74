"""Sessions on the demo model: turns, streaming, bounds, saving; what a user would notice."""

from __future__ import annotations

import gc
import itertools
import types
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgemllm import policies, session_file
from edgemllm.cache.focus import SHARE, Focus, attention, identities, latest_queries
from edgemllm.cache.rope import rotate_queries
from edgemllm.errors import DoesNotFitError, EdgeError, MissingError, UsageError
from edgemllm.media.frame import Frame
from edgemllm.models import loading
from edgemllm.models.chat import Detokenizer, Sampling, choose
from edgemllm.models.families.base import ModelFamily
from edgemllm.models.finders import listen
from edgemllm.policies.full import Full
from edgemllm.policies.inf_mllm import InfMLLM
from edgemllm.policies.streaming_llm import StreamingLLM
from edgemllm.session import Session
from lab.demo_model.renderer import slide

SHORT = Sampling(max_tokens=12)


@pytest.fixture(scope="module")
def demo() -> ModelFamily:
    return loading.load(loading.locate("demo"))


def clip(count: int, seed: int = 0) -> Iterator[Frame]:
    """Dark frames with a slide now and then."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        pixels = rng.integers(0, 60, (90, 160, 3), dtype=np.uint8)
        if index % 9 == 4:
            pixels = slide("red", "circle", index % 10, 160, 90, rng)
        yield Frame(pixels, float(index), index)


def answer(session: Session, question: str = "What is on the screen now?") -> str:
    return "".join(session.ask(question, SHORT))


@pytest.mark.parametrize("name", ["edge", "inf-mllm"])
def test_a_cleared_cache_is_gone_at_once(demo: ModelFamily, name: str) -> None:
    gc.disable()
    try:
        session = Session(demo, policies.build(name), 128, 32)
        session.read("One lamp is lit, and another is not. " * 20)
        answer(session)
        layer = weakref.ref(session.cache.managed[0])
        session.clear()
        assert layer() is None
    finally:
        gc.enable()


def test_a_turn_is_what_the_stock_template_and_model_make_of_it(demo: ModelFamily) -> None:
    """Video, question, answer, second question: the same logits as one stock forward pass over the whole conversation."""
    from edgemllm.models.vision.pixels import pixels

    session = Session(demo, Full(), None, chunk=50)
    frames = list(clip(10))
    session.watch(iter(frames))
    first = answer(session, "Was there a red circle?")
    for _ in session.put("What number was with the red circle?"):
        pass
    assert session.last is not None
    with torch.inference_mode():
        seen = demo.logits(session.last)[:, 0]

    tokenizer = demo.tokenizer
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Was there a red circle?"}]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "What number was with the red circle?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    text = text.replace("<video>", "<video>" * 41)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    demo.model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        video = pixels([frame.pixels for frame in frames], demo.video_spec)  # type: ignore[attr-defined]
        want = demo.model(input_ids=ids, pixel_values_videos=video[None], use_cache=False).logits[:, -1]
    demo.model.set_attn_implementation(type(demo).attention)
    torch.testing.assert_close(seen, want, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", policies.names())
def test_an_endless_stream_with_questions_stays_in_its_budget(demo: ModelFamily, name: str) -> None:
    policy = policies.build(name)
    if not policy.bounded:
        pytest.skip("never evicts")
    session = Session(demo, policy, budget=96, chunk=24)
    session.on_step = lambda s: checked.append(sum(layer.length for layer in s.cache.layers))
    checked: list[int] = []
    frames = clip(120)
    for _ in range(4):
        session.watch(itertools.islice(frames, 30))
        answer(session)
    kv = session.kv()
    assert max(checked) <= 96 * len(session.cache.layers)
    assert kv["bytes"] == kv["budget_bytes"]
    assert kv["seen_tokens"] > 480
    assert kv["evicted_tokens"] == pytest.approx(kv["seen_tokens"] - kv["tokens"], abs=1)


def test_a_question_is_the_newest_prompt(demo: ModelFamily) -> None:
    session = Session(demo, InfMLLM(window="prompt"), 400, 24)
    session.watch(clip(12))
    for _ in range(2):
        seen, answered = session.cache.seen, session.meter.decode_tokens
        answer(session)
        asked = session.cache.seen - (session.meter.decode_tokens - answered) - seen
        assert {layer.counts.prompt for layer in session.cache.layers} == {seen}
        assert 10 < asked < 60


def test_chunk_size_does_not_matter_while_all_fits(demo: ModelFamily) -> None:
    answers = set()
    for chunk in (500, 17, 1):
        session = Session(demo, InfMLLM(), 600, chunk)
        session.watch(clip(12))
        answers.add(answer(session))
    assert len(answers) == 1


def test_stopping_an_answer_keeps_the_session(demo: ModelFamily) -> None:
    session = Session(demo, Full(), None)
    session.watch(clip(6))
    for _ in session.ask("Tell me a long story.", Sampling(max_tokens=50)):
        session.stop()
    stopped = session.meter.decode_tokens
    assert stopped <= 2
    assert answer(session)


def test_stopping_a_video_keeps_what_was_seen(demo: ModelFamily) -> None:
    session = Session(demo, Full(), None)
    session.on_step = lambda s: s.stop() if s.meter.frames else None
    assert session.watch(clip(100)) == 8
    session.on_step = lambda s: None
    assert answer(session)


def test_an_image_can_be_asked_about(demo: ModelFamily) -> None:
    session = Session(demo, Full(), None)
    session.show(next(clip(1)))
    answer(session)
    assert session.cache.seen > 36


def test_sampling_is_seeded_and_zero_temperature_is_greedy(demo: ModelFamily) -> None:
    def say(sampling: Sampling) -> str:
        return "".join(Session(demo, Full(), None).ask("Once upon a time", sampling))

    warm = Sampling(max_tokens=12, temperature=5.0, seed=1)
    assert say(warm) == say(warm)
    assert say(warm) != say(Sampling(max_tokens=12, temperature=5.0, seed=2))
    logits = torch.tensor([[0.0, 3.0, 2.9]])
    assert choose(logits, Sampling(), torch.Generator()) == 1
    picks = {choose(logits, Sampling(temperature=1.0, top_p=0.4), torch.Generator().manual_seed(s)) for s in range(30)}
    assert picks == {1}


@pytest.mark.parametrize("text", ["Grüße aus 東京 🚀🎉 – naïve café", "  two  spaces\n\nand lines", "[/INST] [bold] <b>"])
def test_text_comes_out_piece_by_piece_unharmed(demo: ModelFamily, text: str) -> None:
    words = Detokenizer(demo.tokenizer)
    pieces = [words.add(token) for token in demo.tokenize(text)]
    assert "".join([*pieces, words.rest()]) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(words.ids) < 10


def test_an_impossible_budget_is_refused_with_what_to_type(demo: ModelFamily) -> None:
    with pytest.raises(DoesNotFitError, match="at least") as caught:
        Session(demo, InfMLLM(), 3)
    assert "--kv-budget" in caught.value.hint
    with pytest.raises(DoesNotFitError, match="chunks of 90"):
        Session(demo, StreamingLLM(), 64, chunk=90)


@pytest.mark.parametrize("name", policies.names())
def test_a_saved_session_goes_on_as_if_nothing_had_happened(demo: ModelFamily, name: str, tmp_path: Path) -> None:
    policy = policies.build(name)
    budget = 120 if policy.bounded else None

    def fresh() -> Session:
        return Session(demo, policy, budget, chunk=16)

    session = fresh()
    session.watch(clip(40))
    answer(session)
    session.watch(clip(9, seed=5))
    size = session_file.save(session, tmp_path / "state.edge")
    assert size < session.cache.nbytes * 1.1 + 20_000
    woken = fresh()
    session_file.load(woken, tmp_path / "state.edge")
    more = [session.family.frames(list(clip(20, seed=7)), s.position) for s in (session, woken)]
    torch.testing.assert_close(woken.feed(more[1]), session.feed(more[0]), rtol=0, atol=0)
    assert answer(woken) == answer(session)
    assert woken.kv() == session.kv()
    session_file.load(woken, tmp_path / "state.edge")  # into a session that has already run
    assert woken.kv() != session.kv()


def test_a_wrong_session_file_is_refused_with_a_reason(demo: ModelFamily, tmp_path: Path) -> None:
    session = Session(demo, StreamingLLM(), 64, chunk=16)
    session.watch(clip(30))
    path = tmp_path / "state.edge"
    session_file.save(session, path)
    with pytest.raises(UsageError, match="policy streaming-llm, this session has inf-mllm"):
        session_file.load(Session(demo, InfMLLM(), 64, chunk=16), path)
    with pytest.raises(UsageError, match="sinks=4, this session has sinks=8"):
        session_file.load(Session(demo, StreamingLLM(sinks=8), 64, chunk=16), path)
    with pytest.raises(UsageError, match="64"):
        session_file.load(Session(demo, StreamingLLM(), 32, chunk=16), path)
    with pytest.raises(MissingError):
        session_file.load(session, tmp_path / "none.edge")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MissingError, match="damaged"):
        session_file.load(session, path)
    with pytest.raises(EdgeError, match="no folder"):
        session_file.save(session, tmp_path / "no" / "such" / "folder.edge")


def test_a_session_belongs_to_its_weights_and_dtype(tmp_path: Path) -> None:
    """However they are stored: what a forward pass leaves of quantised weights gives the same fingerprint."""
    path = tmp_path / "state.edge"
    kinds = [("none", "float32"), ("none", "bfloat16"), ("int8", "float32"), ("int4", "float32"), ("nf4", "float32")]
    for quant, dtype in kinds:
        if quant == "nf4":
            pytest.importorskip("bitsandbytes")
        families = [loading.load(loading.locate("demo"), quant, dtype) for _ in range(2)]
        session = Session(families[0], StreamingLLM(), 64, chunk=16)
        if path.exists():
            with pytest.raises(UsageError, match=r"was saved with (dtype|quant) "):
                session_file.load(session, path)
        answer(session)
        session_file.save(session, path)
        other = Session(families[1], StreamingLLM(), 64, chunk=16)
        session_file.load(other, path)
        with torch.no_grad():
            families[1].text_model.layers[3].mlp.down_proj.weight.mul_(2)
        with pytest.raises(UsageError, match="other weights"):
            session_file.load(other, path)


def test_a_system_prompt_that_comes_too_late_is_refused(demo: ModelFamily, tmp_path: Path) -> None:
    path = tmp_path / "state.edge"
    session = Session(demo, Full(), None, system="Be brief.")
    answer(session)
    session_file.save(session, path)
    woken = Session(demo, Full(), None)
    session_file.load(woken, path)
    assert woken.system == "Be brief."
    session_file.load(Session(demo, Full(), None, system="Be brief."), path)
    with pytest.raises(UsageError, match="started with the system prompt"):
        session_file.load(Session(demo, Full(), None, system="Talk."), path)


@pytest.mark.parametrize("quant", ["nf4", "int8", "int4"])
def test_quantisation_touches_the_language_model_alone(quant: str) -> None:
    if quant == "nf4":
        pytest.importorskip("bitsandbytes")
    family = loading.load(loading.locate("demo"), quant=quant)
    kind = {"nf4": "Linear4bit", "int8": "Int8Linear", "int4": "Int4Linear"}[quant]
    changed = [name for name, module in family.model.named_modules() if type(module).__name__ == kind]
    if quant == "int8":
        changed.remove("lm_head")
    assert len(changed) == 6 * 7
    assert all(name.startswith("model.language_model.layers") for name in changed)
    session = Session(family, InfMLLM(), 128, chunk=32)
    session.watch(clip(4))
    assert answer(session)


FOCUSED = [name for name in policies.names() if policies.build(name, ()).takes_focus]


def focus_of(session: Session) -> Focus:
    focus = session.cache.managed[0].focus
    assert isinstance(focus, Focus)
    return focus


@pytest.mark.parametrize("name", FOCUSED)
def test_a_focus_counts_against_the_bytes_and_survives_clearing_and_saving(
    demo: ModelFamily, name: str, tmp_path: Path
) -> None:
    settings = ("window=8",) if hasattr(policies.find(name), "window") else ()

    def fresh() -> Session:
        return Session(demo, policies.build(name, settings), 80, 16, focus=("What is red?", "What number was there?"))

    session = fresh()
    before = focus_of(session).queries
    session.watch(clip(60))
    assert session.kv()["bytes"] <= session.kv()["budget_bytes"]
    session_file.save(session, tmp_path / "state")
    session.clear()
    other = fresh()
    session_file.load(other, tmp_path / "state")
    for each in (session, other):
        for queries, again in zip(itertools.chain(*before), itertools.chain(*focus_of(each).queries), strict=True):
            assert torch.equal(queries, again)


@torch.inference_mode()
def test_the_focus_looks_at_the_cache_as_the_question_would(demo: ModelFamily) -> None:
    """In the first layer queries depend on nothing before them: there the focus is what asking at the end looks at."""
    question = "What number was with the red circle?"
    session = Session(demo, InfMLLM(window=32), None, 64)
    session.watch(clip(20))
    layer, queries = session.cache.managed[0], latest_queries(listen(demo, question).managed[0])
    length = layer.length
    found = attention(queries, layer, layer.scaling, 0)
    session.feed(demo.text(demo.tokenize(question), session.position))
    rows = layer.length - length
    assert layer.queries is not None
    order = torch.arange(layer.counts.seen - rows, layer.counts.seen) % layer.queries.shape[2]
    rotation = layer.rope.at(torch.arange(length, length + rows).view(1, 1, 1, -1), layer.keys)
    asked = rotate_queries(layer.queries[:, :, order], rotation)
    keys = layer.rotated_keys()[:, :, :length]  # the question's own are not in the cache that the focus sees
    for head in range(layer.kv_heads):
        group = asked[:, head * asked.shape[1] // layer.kv_heads : (head + 1) * asked.shape[1] // layer.kv_heads]
        weights = (group @ keys[:, head : head + 1].mT * layer.scaling).softmax(-1)
        torch.testing.assert_close(found[:, head], weights.amax((1, 2)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FOCUSED)
def test_what_was_looked_out_for_stays_in_every_layer(demo: ModelFamily, name: str) -> None:
    settings = ("window=8",) if hasattr(policies.find(name), "window") else ()
    policy = policies.build(name, settings)
    session = Session(demo, policy, 96, 16, focus=("What number was with the red circle?",))
    session.watch(clip(60))
    layers = session.cache.managed
    smallest = min(layers, key=lambda layer: layer.length)
    size = min(layer.budget or 0 for layer in layers) - 16  # what stays when a chunk comes
    protected = sum(policy.protected(smallest, size))
    common = set.intersection(*(set(identities(layer).flatten().tolist()) for layer in layers))
    assert len(common) >= protected + SHARE * 0.9 * (size - protected)


@pytest.mark.parametrize("axes", [1, 3])
def test_a_token_is_the_same_in_every_layer_and_no_other(axes: int) -> None:
    positions = torch.randint(0, 1 << 20, (axes, 1, 2, 50))
    layer = types.SimpleNamespace(positions=positions)
    ids = identities(layer)  # type: ignore[arg-type]
    assert ids.shape == positions.shape[1:]
    assert len(ids.unique()) == len(positions.flatten(1).unique(dim=1).T)


@pytest.mark.parametrize("sampling", [Sampling(temperature=99.0, top_p=0.0), Sampling(temperature=1e-300)])
def test_sampling_that_leaves_one_token_picks_the_likeliest(sampling: Sampling) -> None:
    logits = torch.tensor([[1.0, 9.0, 2.0]])
    assert choose(logits, sampling, torch.Generator().manual_seed(0)) == 1
