"""The chat template of a model folder: how the target model spells a conversation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retrieval_spec.datastore.readers.reading import joined
from retrieval_spec.errors import InvalidInput, InvalidRequest, MissingDependency

_CONFIG_NAME = "tokenizer_config.json"
_TEMPLATE_NAME = "chat_template.jinja"


class ChatTemplate:
    """Renders conversations as transformers does, or without roles where the model folder has no template.

    Opened when the first conversation comes, so that corpora without any need no transformers.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._tokenizer: Any = None
        self._is_open = False

    def __call__(self, messages: Sequence[dict[str, Any]]) -> str:
        """Returns the conversation as the text that the target model sees.

        Raises:
            InvalidRequest: the template refuses the conversation.
            InvalidInput: the model folder's template cannot be read.
            MissingDependency: transformers or what it needs for templates is not installed.
        """
        if not self._is_open:
            self._tokenizer = _open(self._folder) if has_template(self._folder) else None
            self._is_open = True
        if self._tokenizer is None:
            return joined(messages)
        return _render(self._tokenizer, messages)


def has_template(folder: Path | None) -> bool:
    """Returns whether a model folder has a chat template.

    Raises:
        InvalidInput: its configuration is no JSON object.
    """
    if folder is None:
        return False
    if (folder / _TEMPLATE_NAME).is_file():
        return True
    try:
        config = json.loads((folder / _CONFIG_NAME).read_text(encoding="utf-8"))
        return bool(config.get("chat_template"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InvalidInput(
            f"cannot read {folder / _CONFIG_NAME}", got=error, expected="a JSON object"
        ) from error


def _open(folder: Path | None) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingDependency(
            "transformers is not installed, and the model folder has a chat template",
            remedy="pip install 'retrieval-spec[torch]'",
        ) from error
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises nothing more specific
        raise InvalidInput(f"transformers cannot open the tokenizer in {folder}", got=error) from error


def _render(tokenizer: Any, messages: Sequence[dict[str, Any]]) -> str:
    if not messages:
        return ""
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    except ImportError as error:
        raise MissingDependency(
            "chat templates need jinja2", got=error, remedy="pip install jinja2"
        ) from error
    except Exception as error:  # whatever a template does
        raise InvalidRequest("the chat template refuses the conversation", got=error) from error
