"""Recorded conversations as messages with `role` and `content`, whatever their fields were called."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from retrieval_spec.errors import InvalidRequest

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
}


def messages_of(value: Any, where: str) -> list[dict[str, Any]]:
    """Returns messages in the style of OpenAI from those, or from ShareGPT's `from` and `value`.

    Raises:
        InvalidRequest: it is no list of messages, or a message holds something else than text.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidRequest(
            f"{where}: no conversation", got=type(value).__name__, expected="a list of messages"
        )
    return [_message(item, f"{where}: message {number}") for number, item in enumerate(value)]


def _message(item: Any, where: str) -> dict[str, Any]:
    role = _first(item, "role", "from") if isinstance(item, dict) else None
    if not isinstance(role, str):
        raise InvalidRequest(
            f"{where} is none", got=repr(item)[:80], expected="role and content, or from and value"
        )
    rest = {key: part for key, part in item.items() if part is not None and key not in ("from", "value")}
    message = {
        **rest,
        "role": _ROLES.get(role, role),
        "content": _text(_first(item, "content", "value"), where),
    }
    if "tool_calls" in rest:
        message["tool_calls"] = [_tool_call(call, where) for call in _list(rest["tool_calls"], where)]
    return message


def _first(item: dict[str, Any], *names: str) -> Any:
    return next((item[name] for name in names if item.get(name) is not None), None)


def _text(value: Any, where: str) -> str:
    """Returns the text of a message, which may come in parts; a picture has none."""
    if value is None or isinstance(value, str):
        return value or ""
    parts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in _list(value, where)]
    for part in parts:
        if not isinstance(part, str):
            raise InvalidRequest(f"{where} holds something else than text", got=repr(value)[:80])
    return "".join(parts)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(
            f"{where} is no text", got=type(value).__name__, expected="text or a list of parts"
        )
    return value


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """Returns a call with its arguments as an object, as chat templates expect them."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise InvalidRequest(f"{where}: a tool call without function", got=repr(call)[:80])
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):  # what the model wrote amiss stays as it is
            arguments = json.loads(arguments)
    return {**call, "function": {**function, "arguments": arguments}}
