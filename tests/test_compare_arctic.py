"""The comparison with ArcticInference, on a stand-in for that package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "compare_arctic.py"
STAND_IN = '''
from types import SimpleNamespace


class SuffixDecodingCache:
    """Expects the next numbers, of requests that were started and not stopped."""

    def __init__(self):
        self.active = set()

    def start_request(self, request, prompt):
        self.active.add(request)

    def stop_request(self, request):
        self.active.remove(request)

    def add_active_response(self, request, tokens):
        assert request in self.active

    def speculate(self, request, context, max_spec_tokens, max_spec_factor, use_tree_spec):
        assert request in self.active and use_tree_spec and max_spec_factor == 4
        n, last = max_spec_tokens, int(context[-1])
        tokens = list(range(last + 1, last + 1 + n))
        return SimpleNamespace(token_ids=tokens, parents=list(range(-1, n - 1)), probs=[0.5] * n)
'''


def compared(data: Path, arctic: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), str(data), "--arctic", str(arctic), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    lines = [{"id": str(n), "prompt_ids": [0], "output_ids": list(range(1, 9))} for n in range(2)]
    (folder / "count.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_both_sides_replay_the_same_items(data, tmp_path):
    module = tmp_path / "site" / "arctic_inference" / "suffix_decoding"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text(STAND_IN)
    answer = compared(data, tmp_path / "site", "--factor", "4", "--nodes", "3")
    assert answer.returncode == 0, answer.stderr
    rows = [line.strip("| ").split(" | ") for line in answer.stdout.splitlines()]
    rows_by_side = {tuple(row[:2]): row[2:4] for row in rows if len(row) == 9}
    assert rows_by_side["count", "Arctic f4"] == ["4.000", "3.00"]
    assert rows_by_side["**all**", "Arctic f4"] == ["**4.000**", "3.00"]
    # The second item says what the first one said.
    assert float(rows_by_side["count", "default"][0]) > 1


def test_a_missing_package_is_one_line(data, tmp_path):
    answer = compared(data, tmp_path / "nowhere")
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "no usable arctic_inference in" in answer.stderr
    assert answer.stdout == ""
