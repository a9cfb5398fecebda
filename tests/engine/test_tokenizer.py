"""Tokenisation of the embedded model, of hand-made vocabularies and of Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llguidance
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from engine.checkpoint import Checkpoint
from engine.tokenizer import Tokenizer, load_hf_tokenizer

# Ids as llama.cpp tokenises with the same file (xllamacpp 2026.10, `/tokenize`).
GOLDEN = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "hi 123 the": [6004, 216, 33, 34, 35, 260],
}
PIECES = [
    *(
        "a",
        "the",
        "  word",
        "\n",
        "\n\n",
        "\t",
        "'ll",
        "don't",
        "12",
        "2024",
        "3.14",
        "½",
        "٣",
        "é",
        "e\u0301",
        "ß",
        "İ",
    ),
    *(
        "日本語",
        "한국어",
        "क्षि",
        "🙂",
        "👩\u200d👩\u200d👧",
        "\u00a0",
        "\u3000",
        "\u200b",
        "\r\n",
        "_",
        "--",
        "==",
        "{}",
        "\\",
        "€",
    ),
    *("x²", "def f(x):\n    return x", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<", "|", ">", " ", "  ", "    "),
]
# The vocabulary, like the original one, lacks six control characters and the lead bytes from U+40000 on.
texts = st.one_of(
    st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc"]), max_size=60),
    st.lists(st.sampled_from(PIECES), max_size=20).map("".join),
)


@pytest.mark.parametrize("text", GOLDEN)
def test_known_ids(text: str, embedded_tokenizer: Tokenizer) -> None:
    assert embedded_tokenizer.encode(text) == GOLDEN[text]


@settings(max_examples=1000, deadline=None)
@given(text=texts, parse_special=st.booleans())
def test_round_trip(embedded_tokenizer: Tokenizer, text: str, parse_special: bool) -> None:
    ids = embedded_tokenizer.encode(text, parse_special=parse_special)
    assert embedded_tokenizer.decode(ids, skip_special_tokens=False) == text
    assert b"".join(map(embedded_tokenizer.token_bytes, ids)).decode() == text
    if not parse_special:
        assert embedded_tokenizer.special_token_ids.isdisjoint(ids)


def test_source_code_round_trips(embedded_tokenizer: Tokenizer) -> None:
    for path in Path(tokenizers.__file__).parent.rglob("*.py*"):
        if path.suffix in (".py", ".pyi"):
            text = path.read_text(encoding="utf-8")
            assert embedded_tokenizer.decode(embedded_tokenizer.encode(text)) == text


def test_agrees_with_transformers_on_text_without_digits(
    embedded: Checkpoint, embedded_tokenizer: Tokenizer, transformers: Any
) -> None:
    """transformers rebuilds this tokenizer from the same file, save that it forgets to take digits apart."""
    loaded = transformers.AutoTokenizer.from_pretrained(embedded.path.parent, gguf_file=embedded.path.name)
    theirs = loaded.backend_tokenizer

    @settings(max_examples=800, deadline=None)
    @given(text=texts)
    def compare(text: str) -> None:
        without_digits = "".join(character for character in text if not character.isnumeric())
        assert embedded_tokenizer.encode(without_digits, parse_special=True) == theirs.encode(without_digits).ids

    compare()


def test_special_tokens_only_when_asked_for(embedded_tokenizer: Tokenizer) -> None:
    assert embedded_tokenizer.encode("<|im_end|>", parse_special=True) == [2]
    assert 2 not in embedded_tokenizer.encode("<|im_end|>")
    assert embedded_tokenizer.eos_token_ids == {0, 2}
    assert embedded_tokenizer.decode([504, 2], skip_special_tokens=True) == "The"
    assert embedded_tokenizer.decode([504, 2], skip_special_tokens=False) == "The<|im_end|>"


def test_bytes_of_tokens(embedded_tokenizer: Tokenizer) -> None:
    table = embedded_tokenizer.vocabulary_bytes()
    assert len(table) == embedded_tokenizer.vocab_size == 49152
    assert all(table)
    ids = embedded_tokenizer.encode("🙂")
    assert len(ids) > 1
    assert b"".join(table[number] for number in ids) == "🙂".encode()
    assert embedded_tokenizer.token_text(ids[0]) == "\ufffd"
    assert embedded_tokenizer.token_text(2) == "<|im_end|>"
    assert embedded_tokenizer.token_bytes(10**6) == b""


def test_half_a_surrogate_pair_is_refused(embedded_tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="surrogate"):
        embedded_tokenizer.encode("\ud83d")


def test_llguidance_takes_the_tokenizer(embedded_tokenizer: Tokenizer) -> None:
    guided = llguidance.LLTokenizer(embedded_tokenizer.to_json(), eos_token=2)
    assert guided.vocab_size == embedded_tokenizer.vocab_size
    assert guided.tokenize_str("The capital of France is") == GOLDEN["The capital of France is"]


def chat_ids(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> tuple[list[int], str]:
    assert tokenizer.chat_template is not None
    prompt = tokenizer.chat_template.render(messages)
    return tokenizer.encode_chat(prompt), prompt.text


def test_a_harmless_chat_is_encoded_whole(embedded_tokenizer: Tokenizer) -> None:
    ids, text = chat_ids(embedded_tokenizer, [{"role": "user", "content": "Is 3 < 4?"}])
    assert ids == embedded_tokenizer.encode(text, parse_special=True)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")


@settings(max_examples=500, deadline=None)
@given(
    contents=st.lists(
        st.lists(
            st.sampled_from(
                ["<|im_end|>", "<|im_start|>", "<|im_", "end|>", "<", "|im_end|>", "x", " ", "\n", "🙂", "<<|im_end|>"]
            ),
            max_size=8,
        ).map("".join),
        min_size=1,
        max_size=3,
    )
)
def test_messages_cannot_write_special_tokens(embedded_tokenizer: Tokenizer, contents: list[str]) -> None:
    """Whatever users write, the special tokens are those of the template and the text reads as written."""
    messages = [{"role": "user", "content": content} for content in contents]
    ids, text = chat_ids(embedded_tokenizer, messages)
    harmless, _ = chat_ids(embedded_tokenizer, [{"role": "user", "content": "hello"}] * len(contents))

    def specials(numbers: list[int]) -> list[int]:
        return [number for number in numbers if number in embedded_tokenizer.special_token_ids]

    assert specials(ids) == specials(harmless)
    assert embedded_tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(f"<|im_start|>user\n{content}<|im_end|>" in text for content in contents)


def test_decoders_that_cannot_be_streamed_are_refused() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="WordPiece is not supported"):
        Tokenizer(backend, ())


@pytest.fixture
def hf_folder(tmp_path: Path, embedded_tokenizer: Tokenizer) -> Path:
    (tmp_path / "tokenizer.json").write_text(embedded_tokenizer.to_json())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<|im_end|>"}, "bos_token": None, "chat_template": "old"})
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 5]}))
    return tmp_path


def test_a_folder_gives_the_same_tokenizer(hf_folder: Path, embedded_tokenizer: Tokenizer) -> None:
    tokenizer = load_hf_tokenizer(hf_folder)
    text = "Numbers 123 and 🙂 <|im_end|>"
    assert tokenizer.encode(text) == embedded_tokenizer.encode(text)
    assert tokenizer.eos_token_ids == {0, 2, 5}
    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.source == "old"


def test_template_file_beats_the_configuration(hf_folder: Path) -> None:
    (hf_folder / "chat_template.jinja").write_text("{{ eos_token }}")
    template = load_hf_tokenizer(hf_folder).chat_template
    assert template is not None
    assert template.render([{"role": "user", "content": "x"}]).text == "<|im_end|>"


def test_named_templates(hf_folder: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    (hf_folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = load_hf_tokenizer(hf_folder).chat_template
    assert template is not None
    assert template.source == "plain"


def test_folders_without_a_sound_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        load_hf_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a valid tokenizer"):
        load_hf_tokenizer(tmp_path)


def test_truncation_and_padding_of_a_folder_are_switched_off(hf_folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(hf_folder / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    backend.save(str(hf_folder / "tokenizer.json"))
    assert load_hf_tokenizer(hf_folder).encode("The capital of France is") == GOLDEN["The capital of France is"]


def test_metaspace_decoders_are_known() -> None:
    backend = tokenizers.Tokenizer(models.BPE({"▁a": 0, "é": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = Tokenizer(backend, ())
    assert [tokenizer.token_bytes(number) for number in range(2)] == [b" a", "é".encode()]
