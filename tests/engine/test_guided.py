"""Guided output: whatever the model would like to say, the text fits the guide."""

from __future__ import annotations

import json
import re
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.guided import MAX_RECENT_GUIDES, GuideCompiler
from engine.guides import grammar_of, validate_guide
from engine.request import Guide, GuideKind, Request, SamplingParams
from engine.sampler import Sampler

EOS = 0
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer"}, "name": {"type": "string", "maxLength": 8}},
    "required": ["age", "name"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(['{"name": "hello world", "age": 12}'] * 10, trainer)
    return made


@pytest.fixture(scope="module")
def compiler(tokenizer) -> GuideCompiler:
    # The logits are wider than the vocabulary, as padded embeddings make them.
    return GuideCompiler(tokenizer.to_str(), tokenizer.get_vocab_size() + 10, frozenset({EOS}))


def generate(compiler: GuideCompiler, tokenizer: Tokenizer, guide: Guide, seed: int, resume_at: int = -1) -> str:
    """Random logits through the sampler until the end token; digits and quotes are liked so that it ends."""
    vocab_size = tokenizer.get_vocab_size() + 10
    sampler = Sampler(vocab_size, compiler)
    params = SamplingParams(max_tokens=400, temperature=1.0, seed=seed, guide=guide)
    request = Request("r", (5,), params, 0.0, eos_token_ids=frozenset({EOS}))
    noise = torch.Generator().manual_seed(seed)
    for step in range(400):
        logits = torch.randn(1, vocab_size, generator=noise)
        logits[0, EOS] += 3.0
        if step == resume_at:
            sampler.drop(["r"])
        (sampled,) = sampler.sample(logits, [request])
        assert sampled.error is None
        if sampled.token_ids[0] == EOS:
            return tokenizer.decode(request.token_ids[1:])
        request.token_ids.append(sampled.token_ids[0])
    pytest.fail("the guide never let the text end")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_schema_holds_for_any_logits(compiler, tokenizer, seed):
    guide = Guide(GuideKind.JSON_SCHEMA, json.dumps(SCHEMA))
    parsed = json.loads(generate(compiler, tokenizer, guide, seed, resume_at=seed % 7))
    assert set(parsed) == {"age", "name"}
    assert isinstance(parsed["age"], int)
    assert len(parsed["name"]) <= 8


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_regex_holds_for_any_logits(compiler, tokenizer, seed):
    text = generate(compiler, tokenizer, Guide(GuideKind.REGEX, r"[0-9]{3}-[a-c]{2,9}"), seed)
    assert re.fullmatch(r"[0-9]{3}-[a-c]{2,9}", text)


def test_json_object_begins_like_one(compiler, tokenizer):
    logits = torch.zeros(tokenizer.get_vocab_size() + 10)
    compiler.compile(Guide(GuideKind.JSON_OBJECT)).mask_logits(logits)
    allowed = torch.nonzero(logits > -torch.inf).flatten().tolist()
    assert allowed
    assert all(tokenizer.decode([token]).startswith("{") for token in allowed)


def test_a_compiled_guide_is_shared_and_each_matcher_stands_alone(compiler, tokenizer):
    guide = Guide(GuideKind.REGEX, "ab")
    first, second = compiler.compile(guide), compiler.compile(guide)
    (a,) = tokenizer.encode("a").ids
    first.accept(a)
    second.accept(a)
    with pytest.raises(ValueError, match="guided output failed"):
        first.accept(a)


def test_a_held_guide_is_compiled_once_however_many_come_after_it(compiler, monkeypatch):
    compiled: list[Guide] = []
    monkeypatch.setattr("engine.guided.grammar_of", lambda guide: compiled.append(guide) or grammar_of(guide))
    held_guide = Guide(GuideKind.REGEX, "held")
    held = compiler.compiled(held_guide)
    for number in range(MAX_RECENT_GUIDES + 1):
        compiler.compile(Guide(GuideKind.REGEX, f"other {number}"))
    assert compiler.compiled(held_guide) is held
    assert compiled.count(held_guide) == 1
    assert len(compiler._recent) == MAX_RECENT_GUIDES


def test_a_slow_compilation_keeps_nobody_from_a_compiled_guide(compiler, monkeypatch):
    ready, going_on = Guide(GuideKind.REGEX, "ready"), Guide(GuideKind.REGEX, "slow")
    compiler.compile(ready)
    began, may_end = threading.Event(), threading.Event()

    def slowly(guide: Guide) -> str:
        began.set()
        assert may_end.wait(60)
        return grammar_of(guide)

    monkeypatch.setattr("engine.guided.grammar_of", slowly)
    thread = threading.Thread(target=compiler.compile, args=(going_on,))
    thread.start()
    assert began.wait(60)
    taken = threading.Thread(target=compiler.compile, args=(ready,))
    taken.start()
    taken.join(30)
    stuck = taken.is_alive()
    may_end.set()
    thread.join()
    taken.join()
    assert not stuck


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (Guide(GuideKind.REGEX, "(("), "unclosed group"),
        (Guide(GuideKind.JSON_SCHEMA, "{"), "not JSON"),
        (Guide(GuideKind.JSON_SCHEMA, "[]"), "must be an object"),
        (Guide(GuideKind.JSON_SCHEMA, '{"type": "foo"}'), "foo"),
    ],
)
def test_a_bad_guide_is_refused_with_its_reason(compiler, guide, message):
    with pytest.raises(ValueError, match=message):
        validate_guide(guide)
    with pytest.raises(ValueError, match=message):
        compiler.compile(guide)
