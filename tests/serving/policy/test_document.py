"""YAML: what is read as what, what is refused, and where a problem is said to be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.policy.document import MAX_BYTES, MAX_DEPTH, MAX_NODES, read_document
from serving.policy.load import parse_policy
from serving.policy.problems import PolicyError


def refusal(text: str | bytes) -> str:
    with pytest.raises(PolicyError) as caught:
        read_document(text if isinstance(text, bytes) else text.encode(), "p.yaml")
    return str(caught.value)


def test_yaml_1_2_scalars():
    text = "zone: NO\ntime: 22:30\nday: 2026-01-15\nyes: yes\nnull: ~\nhex: 0x1F\noctal: 0o17\n"
    text += "ten: 010\nmany: 1_000\nhalf: .5\non: true\n"
    data = read_document(text.encode(), "p").data
    assert data == {
        "zone": "NO",
        "time": "22:30",
        "day": "2026-01-15",
        "yes": "yes",
        "null": None,
        "hex": 31,
        "octal": 15,
        "ten": 10,
        "many": 1000,
        "half": 0.5,
        "on": True,
    }


def test_places_of_keys_and_values():
    document = read_document(b"a:\n  b: [1, {c: 2}]\n", "p")
    assert document.place(("a", "b")) == (2, 6)
    assert document.place(("a", "b"), key=True) == (2, 3)
    assert document.place(("a", "b", 1, "c")) == (2, 14)
    assert document.place(("a", "nowhere", "at", "all")) == (2, 3)


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, 1, "duplicate key; first on line 1"),
        ("a: {b: 1,\n    b: 2}\n", 2, 5, "duplicate key"),
        ("a: &x [1]\nb: *x\n", 1, 4, "anchors and aliases are refused"),
        ("b: *x\n", 1, 4, "anchors and aliases are refused"),
        ("a:\n  <<: {b: 1}\n", 2, 3, "merge keys are refused"),
        ("%YAML 1.1\n---\na: NO\n", 2, 1, "directives are refused"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, 4, "tag"),
        ("a: 1\n---\nb: 2\n", 2, 1, "only one document"),
        ("? [a, b]\n: 1\n", 1, 3, "a key must be a plain word"),
        ("a: .inf\n", 1, 4, "infinite"),
        ("a: .NaN\n", 1, 4, "infinite"),
        ("a: [1, 2\n", 2, 1, "not valid YAML"),
        ("a: 'x\n", 2, 1, "not valid YAML"),
        ("\tb: 1\n", 1, 1, "not valid YAML"),
        ("", 1, 1, "the file is empty"),
        ("# nothing\n", 1, 1, "the file is empty"),
    ],
)
def test_refused_with_place(text, line, column, words):
    message = refusal(text)
    assert message.startswith(f"p.yaml:{line}:{column}: "), message
    assert words in message


def test_not_utf8_names_the_line():
    assert refusal(b"a: 1\nb: \xff\n").startswith("p.yaml:2:1: not UTF-8")


def test_size_depth_and_count_are_bounded():
    assert f"may have {MAX_BYTES}" in refusal(b"#" * (MAX_BYTES + 1))
    assert "levels" in refusal("a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    assert "levels" in refusal("[" * 100_000)
    assert "values" in refusal("a: [" + "1," * (MAX_NODES + 1) + "]")


def test_an_alias_bomb_is_refused_before_it_is_built():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "p.yaml:1:5: anchors and aliases" in refusal("\n".join(lines))


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_read_or_refused_with_a_place(raw):
    assert all(problem.line >= 1 and problem.column >= 1 for problem in found_in(raw))


def found_in(raw):
    try:
        return parse_policy(raw, "p.yaml").warnings
    except PolicyError as error:
        return error.problems
