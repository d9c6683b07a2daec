"""Chat templates in the style of real checkpoints, the forms of messages, and the sandbox."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quire.engine.errors import ParamsError
from quire.engine.text.chat import ChatTemplate, normalize_messages

LLAMA = """{{- bos_token }}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\nToday: " + date_string + "\\n\\n" + system + "<|eot|>" }}
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages | length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if not ns.found and message.role == "user" %}
        {%- set ns.found = true %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- set thought = '' %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if thought and loop.index0 > ns.last %}
        {{- '<think>' + thought + '</think>\\n\\n' }}
    {%- endif %}
    {{- content }}
    {%- for tool_call in message.tool_calls or [] %}
        {%- if tool_call.function %}
            {%- set tool_call = tool_call.function %}
        {%- endif %}
        {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
        {%- if tool_call.arguments is string %}
            {{- tool_call.arguments }}
        {%- else %}
            {{- tool_call.arguments | tojson }}
        {%- endif %}
        {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate user/assistant') }}
{% endif %}
    {% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% else %}
{% generation %}
{{ ' ' + message['content'] + eos_token }}
{% endgeneration %}
{% endif %}
{% if loop.index0 > 90 %}{% break %}{% endif %}
{% endfor %}
"""

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    {"role": "user", "content": "Hi <b>é</b>"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"},
    {"role": "user", "content": "What is 1 + 2?"},
]
TOOL = {"type": "function", "function": {"name": "add", "description": "Füge <a> & 'b'"}}


def clock() -> datetime:
    return datetime(2031, 7, 4, 12, 30)


def make_template(source: Any) -> ChatTemplate:
    return ChatTemplate(source, NAMES, clock=clock)


def render(source: str, messages: list[dict[str, Any]] | None = None, **options: Any) -> str:
    return make_template(source).render(CHAT if messages is None else messages, **options)


def transformers_render(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    options = {"add_generation_prompt": True} | NAMES | options
    rendered: Any = render_jinja_template([messages], chat_template=source, **options)
    text: str = rendered[0][0]
    return text


@pytest.mark.parametrize("source", [QWEN, MISTRAL], ids=["qwen", "mistral"])
@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("generate", [True, False])
def test_renders_as_transformers(source: str, tools: Any, generate: bool) -> None:
    options = {"tools": tools, "add_generation_prompt": generate}
    assert render(source, **options) == transformers_render(source, CHAT, **options)


def test_llama_style_knows_the_date_of_the_clock() -> None:
    system = {"role": "system", "content": " Be brief. "}
    assert render(LLAMA, [system, CHAT[0]]) == (
        "<s><|start|>system<|end|>\n\nToday: 04 Jul 2031\n\nBe brief.<|eot|>"
        "<|start|>user<|end|>\n\nHi <b>é</b><|eot|><|start|>assistant<|end|>\n\n"
    )
    assert "Today: now" in render(LLAMA, date_string="now")


def test_qwen_style_drops_old_thoughts_and_writes_tool_calls() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"ä": [1]}'}}
    chat: list[Any] = [*CHAT, {"role": "assistant", "content": None, "tool_calls": [call]}]
    text = render(QWEN, chat, tools=[TOOL], enable_thinking=False)
    assert "hm" not in text
    assert '"description": "Füge <a> & \'b\'"' in text
    assert '\n<tool_call>\n{"name": "add", "arguments": {"ä": [1]}}\n</tool_call><|im_end|>' in text
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_tool_template_is_taken_when_there_are_tools() -> None:
    template = make_template({"default": "plain", "tool_use": "tools", "rag": "docs"})
    assert template.render(CHAT) == "plain"
    assert template.render(CHAT, tools=[TOOL]) == "tools"
    assert template.render(CHAT, tools=[]) == "plain"
    assert template.render(CHAT, chat_template="rag") == "docs"
    with pytest.raises(ParamsError, match=r"must be one of \['default', 'rag', 'tool_use'\]"):
        template.render(CHAT, chat_template="no")


@pytest.mark.parametrize("source", [None, {}])
def test_a_missing_template_is_told(source: Any) -> None:
    with pytest.raises(ParamsError, match="no chat template"):
        make_template(source).render(CHAT)
    with pytest.raises(ParamsError, match="no default chat template"):
        make_template({"a": "", "b": ""}).render(CHAT)


def test_text_parts_are_joined_by_newlines() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert normalize_messages([{"role": "user", "content": parts}])[0]["content"] == "a\nb"


def test_the_callers_messages_stay_as_they_are() -> None:
    call = {"function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "tool_calls": [call]}
    normalize_messages([message])
    assert message == {"role": "assistant", "tool_calls": [call]}
    assert call["function"]["arguments"] == "{}"


@pytest.mark.parametrize("arguments", ["no json", "[1]", "1", '{"a": ', "\ud800", "[" * 100_000])
def test_arguments_that_are_no_object_stay_text(arguments: str) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    chat = normalize_messages([{"role": "assistant", "tool_calls": [call]}])
    assert chat[0]["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages must be a list"),
        ("hi", "messages must be a list"),
        ({"role": "user"}, "messages must be a list"),
        ([1], r"messages\[0\] is 1"),
        ([CHAT[0], {"content": "x"}], r"messages\[1\].role is None"),
        ([{"role": 3}], r"messages\[0\].role is 3"),
        ([{"role": ""}], r"messages\[0\].role is ''"),
        ([{"role": "user", "content": 5}], r"messages\[0\].content is 5"),
        ([{"role": "user", "content": {}}], r"messages\[0\].content is {}"),
        ([{"role": "user", "content": [5]}], r"content\[0\] is 5: it must be a part like"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\] is"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'image_url': it must be text"),
        ([{"role": "user", "tool_calls": 5}], r"tool_calls is 5"),
        ([{"role": "user", "tool_calls": [5]}], r"tool_calls\[0\] is 5"),
    ],
)
def test_wrong_messages_are_refused_by_place(messages: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message) as caught:
        render(QWEN, messages)
    assert caught.value.param == "messages"


@given(value=st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x, max_size=3)))
def test_no_value_of_a_message_breaks_the_renderer(value: Any) -> None:
    for message in (value, {"role": value}, {"role": "user", "content": value}):
        try:
            text = render(QWEN, [message])
        except ParamsError:
            continue
        assert text.startswith("<|im_start|>")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('Only user!') }}", "refuses: Only user!"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ 'a' + 1 }}", "can only concatenate"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ [][3] + 'a' }}", "refuses:"),
        ("{{ nothing | tojson }}", "not JSON serializable"),
        ("{% for %}", "refuses:"),
        ("{{ messages | nofilter }}", "nofilter"),
        ("{% include 'file' %}", "refuses:"),
        ("{% for i in range(10 ** 7) %}x{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_what_a_template_raises_becomes_a_message(source: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        render(source)


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "messages.__class__.__base__",
        "messages.append(1)",
        "messages[0].update({})",
        "messages[0].pop('role')",
        "raise_exception.__globals__",
        "raise_exception.__code__.co_consts",
        "strftime_now.__closure__[0].cell_contents",
        "cycler.__init__.__globals__.os.popen('id').read()",
        "namespace.__init__.__globals__",
        "self._TemplateReference__context",
        "self.__init__.__globals__",
        "'{0.__class__.__mro__}'.format(1)",
        "('%s' | attr('format'))('{0.__class__}') | attr('__class__')",
        "'{x.__globals__}'.format_map({'x': raise_exception})",
        "dict.__globals__",
        "(messages | map(attribute='__class__') | list)[0].mro()",
        "[] | attr('__class__')",
        "lipsum()",
        "tools.__class__",
    ],
)
def test_templates_do_not_reach_python(expression: str) -> None:
    try:
        text = render("{{ " + expression + " }}")
    except ParamsError:
        return
    assert not any(word in text for word in ("class", "module", "built", "uid=", "object at", "<"))
    assert text.strip() in ("", "{}")


def test_messages_cannot_be_changed_by_a_template() -> None:
    chat = [{"role": "user", "content": "a", "extra": {"list": [1]}}]
    with pytest.raises(ParamsError, match="refuses"):
        render("{{ messages[0].extra.list.append(2) }}", chat)
    assert chat[0]["extra"] == {"list": [1]}


def test_a_message_is_text_and_never_a_template() -> None:
    assert "{{ 7 * 7 }}" in render(QWEN, [{"role": "user", "content": "{{ 7 * 7 }}"}])


def test_objects_do_not_enter_a_template() -> None:
    with pytest.raises(ParamsError, match="Path is not JSON"):
        render(QWEN, secret=Path("/"))


def test_variables_do_not_replace_the_messages() -> None:
    template = make_template("{{ messages[0].content }}{{ bos_token }}{{ add_generation_prompt }}")
    text = template.render(CHAT, bos_token="<x>", documents=[{"a": 1}])
    assert text == "Hi <b>é</b><x>True"


def test_the_last_message_is_continued() -> None:
    chat = [CHAT[0], {"role": "assistant", "content": "It is "}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert render(QWEN, chat, **options).endswith("<|im_start|>assistant\nIt is ")
    assert render(LLAMA, chat, **options).endswith("assistant<|end|>\n\nIt is")
    assert chat[1]["content"] == "It is "
    with pytest.raises(ParamsError, match="leaves out the last message"):
        render("{{ messages[0].content }}", chat, **options)
    with pytest.raises(ParamsError, match="either continued or begun"):
        render(QWEN, chat, continue_final_message=True)


def test_huge_chats_render_quickly() -> None:
    start = time.perf_counter()
    long = render(QWEN, [{"role": "user", "content": "word </think> " * 500_000}])
    many = render(QWEN, [{"role": "user", "content": "x"}] * 20_000)
    assert len(long) > 6_000_000
    assert many.count("<|im_start|>") == 20_001
    assert time.perf_counter() - start < 10


def test_a_template_that_writes_without_end_is_stopped() -> None:
    source = "{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}"
    with pytest.raises(ParamsError, match="longer than 67108864 characters"):
        render(source, [{"role": "user", "content": "x" * 100_000}])


def test_deep_messages_are_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ParamsError, match="refuses"):
        render(QWEN, [{"role": "user", "content": "a", "extra": deep}])
    while deep:  # taken apart slowly: freeing it at once would recurse as deeply
        deep = deep.pop()


def test_a_template_is_compiled_once() -> None:
    template = make_template(QWEN)
    template.render(CHAT)
    compiled = dict(template._compiled)
    template.render(CHAT)
    assert template._compiled == compiled
    assert len(compiled) == 1
