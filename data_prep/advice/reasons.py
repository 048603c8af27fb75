"""The way out for every reason for which a row is rejected: what to change, in one clause each."""

from __future__ import annotations

from data_prep.filters.clean import RULES

ADVICE = {
    "bad_utf8": "set {key}.encoding to the encoding of the file (cp1252, latin-1, utf-16, ...), or save it as UTF-8",
    "bad_json": "correct these lines: a .jsonl file has one JSON object per line, or objects over several lines",
    "not_an_object": "write every row as a JSON object; see the format's keys at {key}.format",
    "wrong_field_count": "put fields that hold the separator in quotes, so that each row has the columns of the header",
    "missing_field": "name the rows' own keys in {key}.fields, or set {key}.format to the format that they have",
    "non_string_field": "make the field a text, or set {key}.format to a format that reads such a value",
    "empty_field": "fill the field in, or remove the row",
    "bad_options": "write 'options' as a list of texts, or give the options under another name",
    "bad_supervised_flag": "write supervised and train as true or false, and weight as a number from 0 on; templates "
    "alpaca and plain train on the answer alone, so a weight of the question needs {key}.template=chat",
    "non_mapping_turn": "write each turn as an object (role and content, or from and value)",
    "unknown_role": "rename the role to one of those listed",
    "non_text_content": "take the parts that are not text (images, audio) out of the row, or remove the row",
    "bad_tool_call": "write a call as {{name, arguments}}, with arguments as an object or as JSON text",
    "bad_history": "write 'history' as a list of pairs [question, answer]",
    "two_reasonings": "keep one of the turn's reasoning_content, reasoning and thinking",
    "control_in_tool_call": "take the special token's text out of the tool, the call or the name",
    "not_question_and_answer": "set {key}.template=chat, which holds tools' turns and any order of roles",
    "bad_tools": "write 'tools' as a JSON list of functions",
    "no_messages": "give the row a user's turn and an answer",
    "needs_chat_template": "set {key}.template=chat",
    "not_single_turn": "leave {key}.style out: a style writes one question and one answer",
    "template_cannot_hold_tools": "set {key}.template=chat and use a tokenizer whose chat template writes tools",
    "missing_template_field": "name another set of templates at {key}.style.templates, or give the rows its fields",
    "chat_template_refuses": "change the turns as the template asks (often: the order of roles, a call's id), or give "
    "another template in data.chat_template",
    "chat_template_limits": "give another template in data.chat_template: this one takes too long, or writes too much",
    "chat_template_drops_message": "the chat template leaves this text out: give another in data.chat_template, or "
    "take the text out of the rows",
    "chat_template_rewrites_history": "the chat template rewrites even what stands before the last answer; give "
    "another in data.chat_template",
    "no_supervised_token": "give the row an answer that is trained on (weight above 0), and set data.seq_len so "
    "that the answer begins before it",
    "over_length": "set data.seq_len higher, or data.over_length=truncate_right to cut such rows",
    "no_exemplar": "give the task more rows, or leave {key}.style.shots out",
    "no_exemplar_fits": "set {key}.style.prompt_tokens or data.seq_len higher",
    "duplicate": "set +data.clean.duplicate=false to keep repeated rows",
    "near_duplicate": "set data.near_duplicates higher, or leave it out",
    "held_out_prompt": "take the rows out of one of the two files; what is held out must not be trained on",
    "contaminated": "leave the rows out, or leave data.decontaminate out",
    "special_token_text": "the text spells a control token; change the text, or use a fast tokenizer",
    "lone_surrogate": "correct the text, which holds half a character",
}
"""By reason; ``{key}`` is the source's place in the config, a doubled brace is one brace."""
SWITCH = "look at the rows; set +data.clean.{rule}=false to keep them"


def advice(reason: str, source: str) -> str:
    """The way out for rows of source ``source`` that were rejected for ``reason``."""
    if reason not in ADVICE and reason in {rule.name for rule in RULES}:
        return SWITCH.format(rule=reason)
    return ADVICE.get(reason, "look at the rows").format(key=f"data.sources.{source}")
