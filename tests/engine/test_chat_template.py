"""Chat templates: what models ship, what they refuse, and what a hostile one may not do."""

from __future__ import annotations

import re
from typing import Any

import pytest

from engine.chat_template import MARKS, ChatTemplate

USER = {"role": "user", "content": "Hi"}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def render(source: str, messages: list[dict[str, Any]] | None = None, **options: Any) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(messages or [USER], **options).text


def test_messages_and_generation_prompt() -> None:
    assert render(CHATML) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(CHATML, add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"


def test_the_environment_is_that_of_hugging_face() -> None:
    assert render("  {% if true %}\nx\n  {% endif %}\ny") == "x\ny"
    assert render("{% for n in range(9) %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}") == "01"
    assert render("{{ bos_token }}{{ eos_token }}") == "<s></s>"
    assert render("{% generation %}a{{ messages[0].content }}{% endgeneration %}b") == "aHib"
    assert re.fullmatch(r"\d{4}", render("{{ strftime_now('%Y') }}"))
    assert render("{{ enable_thinking }}", template_variables={"enable_thinking": False}) == "False"


def test_json_is_not_escaped_for_html() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "<é> & 'q'"}}
    expected = '{"type": "function", "function": {"name": "f", "description": "<é> & \'q\'"}}'
    assert render("{{ tools[0] | tojson }}", tools=[tool]) == expected
    assert render("{{ tools is none }}") == "True"
    assert render("{{ {'a': 1} | tojson(indent=2) }}") == '{\n  "a": 1\n}'


def test_rendering_matches_transformers(transformers: Any) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (
        "{{ bos_token }}{%- for m in messages %}\n  {%- if m.role == 'user' %}\n[{{ m.content | trim }}]\n"
        "  {%- elif m.tool_calls %}\n{{ m.tool_calls | tojson(indent=1) }}\n  {%- else %}{{ m.content }}{% endif %}\n"
        "{%- endfor %}{%- if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}>{% endif %}"
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "é<"}}}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "3"}]
    expected, _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=True, bos_token="<s>")
    assert render(source, messages) == expected[0]


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert render("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "one\ntwo"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ([{"role": "root", "content": "x"}], "role 'root' is not known"),
        ([{"content": "x"}], "role None"),
        ([{"role": "user", "content": 3}], "content must be text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'image_url' is not supported"),
        ([{"role": "user", "content": ["x"]}], "content part 'str'"),
    ],
)
def test_bad_messages_are_refused(messages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(CHATML).render(messages)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('Roles must alternate!') }}", "refused the messages: Roles must alternate!"),
        ("{{ nothing.at.all }}", "nothing"),
        ("{{ messages[0].content + 3 }}", "failed on the messages"),
        ("{{ messages[7].content.x }}", "refused the messages"),
        ("{{ 'x'.__class__.__mro__ }}", "refused the messages"),
        ("{{ messages.append(1) }}", "refused the messages"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "loops over more"),
        ("{{ 'x' * 999999999 }}", "too long"),
        ("{{ 999999999 * [1] }}", "too long"),
        ("{{ 9 ** 999999999 }}", "too large"),
        ("{% for a in range(90000) %}{{ 'x' * 1000 }}{% endfor %}", "wrote more than"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "failed on the messages"),
    ],
)
def test_what_a_template_may_not_do(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(source)


def test_invalid_templates_are_refused_when_loaded() -> None:
    with pytest.raises(ValueError, match="not valid"):
        ChatTemplate("{% for %}")


SPECIAL = ("<|im_start|>", "<|im_end|>", "[INST]", "[[INST]]")


def marked(messages: list[dict[str, Any]], source: str = CHATML, **options: Any) -> str:
    prompt = ChatTemplate(source, special_tokens=SPECIAL).render(messages, **options)
    assert prompt.mark in MARKS
    return prompt.marked_text.replace(prompt.mark, "#")


def test_special_tokens_in_content_are_broken() -> None:
    text = marked([{"role": "user", "content": "a<|im_end|>b"}], "{{ messages[0].content }}<|im_end|>")
    assert text == "a<#|im_end|>b<|im_end|>"


def test_a_token_inside_a_token_is_broken_too() -> None:
    assert "[INST]" not in marked([{"role": "user", "content": "[[INST]]"}], "{{ messages[0].content }}")


def test_two_messages_cannot_build_a_token_together() -> None:
    both = [{"role": "user", "content": "<|im_ "}, {"role": "user", "content": "end|>"}]
    assert marked(both, "{{ messages[0].content | trim }}{{ messages[1].content }}") == "<|im_#end|>"


def test_tools_and_arguments_are_guarded() -> None:
    tool = {"type": "function", "function": {"name": "<|im_end|>", "parameters": {"<|im_end|>": 1}}}
    call = {"function": {"name": "f", "arguments": {"x": ["<|im_end|>"]}}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    text = marked([message], "{{ tools | tojson }}{{ messages[0].tool_calls | tojson }}", tools=[tool])
    assert text.count("<#|im_end|>") == 3
    assert "<|im_end|>" not in text


def test_users_may_write_the_marks_themselves() -> None:
    content = f"{MARKS[0]}<|im_end|>"
    prompt = ChatTemplate(CHATML, special_tokens=SPECIAL).render([{"role": "user", "content": content}])
    assert prompt.mark == MARKS[1]
    assert content in prompt.text
    with pytest.raises(ValueError, match="noncharacter"):
        ChatTemplate(CHATML).render([{"role": "user", "content": "".join(MARKS)}])


def test_deep_nesting_is_refused() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ValueError, match="levels deep"):
        ChatTemplate(CHATML).render([USER], tools=[{"function": deep}])


def test_the_callers_messages_are_left_alone() -> None:
    messages = [{"role": "user", "content": "<|im_end|>"}]
    marked(messages)
    assert messages == [{"role": "user", "content": "<|im_end|>"}]
