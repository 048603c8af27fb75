"""Twelve chat templates after published ones, in our own words: what they write, refuse, fold and strip.

Each stands for what its model's documentation says of the format. ``ends``: the text of the control token that ends an
answer. Names of models in the texts are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

CALL_TAGS = (
    "{% macro calls(m) %}{% for call in m.tool_calls %}{% set f = call.function %}"
    "{{ '\n' if m.content or not loop.first else '' }}<tool_call>\n"
    '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}{% endmacro %}"
)
TOOLS_HEAD = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "# Tools\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
)
TOOL_TURNS = (
    "{% elif m.role == 'tool' %}{% if loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}\n<tool_response>\n"
    "{{ m.content }}\n</tool_response>{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{% endif %}"
)
IM_OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + IM_OPENING
)  # fmt: skip
QWEN25 = (
    CALL_TAGS
    + TOOLS_HEAD
    + "{% for m in messages %}{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content or '' }}"
    "{% if m.tool_calls %}{{ calls(m) }}{% endif %}<|im_end|>\n" + TOOL_TURNS + "{% endif %}{% endfor %}" + IM_OPENING
)
# Thoughts stay only behind the last question; they may also stand in the content, between <think> and </think>.
QWEN3 = (
    CALL_TAGS + TOOLS_HEAD + "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}{% set content = m.content or '' %}{% set thought = m.reasoning_content or '' %}"
    "{% if not thought and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n{% if loop.index0 > ns.last and (loop.last or thought) %}<think>\n"
    "{{ thought.strip('\n') }}\n</think>\n\n{{ content.lstrip('\n') }}{% else %}{{ content }}{% endif %}"
    "{% if m.tool_calls %}{{ calls(m) }}{% endif %}<|im_end|>\n" + TOOL_TURNS + "{% endif %}{% endfor %}" + IM_OPENING
)
LLAMA31 = (
    "{{ bos_token }}{% set date = strftime_now('%d %b %Y') %}{% set system = '' %}{% set rest = messages %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set rest = messages[1:] %}"
    "{% endif %}<|start_header_id|>system<|end_header_id|>\n\n{% if tools %}Environment: ipython\n{% endif %}"
    "Cutting Knowledge Date: December 2023\nToday Date: {{ date }}\n\n{% if tools %}Functions:\n"
    "{% for tool in tools %}{{ tool | tojson(indent=4) }}\n\n{% endfor %}{% endif %}{{ system }}<|eot_id|>"
    "{% for m in rest %}{% if m.role in ('tool', 'ipython') %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ m.content | tojson if m.content is mapping else m.content }}<|eot_id|>"
    "{% elif m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('This model only supports single "
    "tool-calls at once!') }}{% endif %}{% set f = m.tool_calls[0].function %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}<|eot_id|>'
    "{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL1 = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}"
    "{{ m.content + eos_token }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}{% endfor %}"
)
# The tools stand before the last question and the system text in it, so no turn but the last reads as it was generated.
MISTRAL3 = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}{% else %}"
    "{% set rest = messages %}{% endif %}{% set users = rest | selectattr('role', 'equalto', 'user') | list %}"
    "{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}{% if tools and m == users[-1] %}"
    "[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{% if loop.last and system is defined %}[INST] {{ system }}\n\n{{ m.content }}[/INST]"
    "{% else %}[INST] {{ m.content }}[/INST]{% endif %}"
    "{% elif m.tool_calls %}[TOOL_CALLS] [{% for call in m.tool_calls %}{% if (call.id or '') | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}'
    "{{ ', ' if not loop.last else '' }}{% endfor %}]{{ eos_token }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}"
    '{% elif m.role == \'tool\' %}[TOOL_RESULTS] {"content": {{ m.content }}, "call_id": "{{ m.tool_call_id }}"}'
    "[/TOOL_RESULTS]{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% set head = '' %}{% set rest = messages %}{% if messages[0].role == 'system' %}"
    "{% set head = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ head if loop.first else '' }}"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# Opens generation with a thought, and strips thoughts from every answer.
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "<|User|>{{ m.content }}{% elif m.role == 'assistant' %}"
    "<|Assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{% if m.role in ('user', 'system') %}{{ '<|' + m.role + '|>\n' + m.content + eos_token }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + eos_token }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
)
GRANITE = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}{% else %}"
    "{% set system = 'You are a helpful AI assistant.' %}{% set rest = messages %}{% endif %}"
    "<|start_of_role|>system<|end_of_role|>{{ system }}<|end_of_text|>\n"
    "{% if tools %}<|start_of_role|>tools<|end_of_role|>{{ tools | tojson(indent=4) }}<|end_of_text|>\n{% endif %}"
    "{% for m in rest %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}"
    "{% if m.tool_calls %}<|tool_call|>{{ m.tool_calls | map(attribute='function') | list | tojson }}{% endif %}"
    "<|end_of_text|>\n{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)


@dataclass(frozen=True)
class Published:
    """A chat template with the tokens it needs."""

    template: str
    specials: tuple[str, ...]
    eos: str
    end: str
    """Control token at the end of an answer."""
    system: bool = True
    """Whether it takes a system turn."""
    calls: bool = False
    """Whether it takes tools, tool calls and tools' answers."""
    reasoning: bool = False
    lead: str = ""
    """What it writes between its opening and the answer."""
    rewrites: frozenset[str] = frozenset()
    """Kinds of conversations (see test_published.py) whose history reads otherwise than it was generated."""
    refuses: frozenset[str] = frozenset()
    """Kinds that it refuses."""


IM = ("<|im_start|>", "<|im_end|>", "<|eot|>")
GEMMA = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
TOOLS = frozenset({"tools", "two_calls"})
PUBLISHED = {
    "chatml": Published(CHATML, IM, "<|im_end|>", "<|im_end|>"),
    "chatml_base": Published(CHATML, IM, "<|eot|>", "<|im_end|>"),
    "qwen25": Published(QWEN25, IM, "<|im_end|>", "<|im_end|>", calls=True),
    "qwen3": Published(
        QWEN3, IM, "<|im_end|>", "<|im_end|>", calls=True, reasoning=True, lead="<think>\n\n</think>\n\n",
        rewrites=frozenset({"turns", "system_turns", "thoughts", *TOOLS}),
    ),
    "llama31": Published(
        LLAMA31, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>", "<|eot_id|>", calls=True,
        refuses=frozenset({"two_calls"}),
    ),
    "mistral1": Published(MISTRAL1, ("<s>", "</s>"), "</s>", "</s>", system=False, refuses=TOOLS),
    "mistral3": Published(
        MISTRAL3,
        ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
         "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        "</s>", "</s>", calls=True, system=False, lead=" ",
    ),
    "gemma2": Published(GEMMA2, GEMMA, "<eos>", "<end_of_turn>", system=False, refuses=TOOLS),
    "gemma3": Published(GEMMA3, GEMMA, "<eos>", "<end_of_turn>", refuses=TOOLS),
    "phi3": Published(PHI3, ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>"), "<|endoftext|>", "<|end|>"),
    "deepseek": Published(DEEPSEEK, ("<|User|>", "<|Assistant|>", "<|eos|>"), "<|eos|>", "<|eos|>",
        refuses=TOOLS | {"reasoning", "thoughts"}),
    "zephyr": Published(ZEPHYR, ("</s>",), "</s>", "</s>", refuses=TOOLS),
    "granite": Published(
        GRANITE, ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>"), "<|end_of_text|>",
        "<|end_of_text|>", calls=True,
    ),
}  # fmt: skip
