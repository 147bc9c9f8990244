"""Runs the questions of Spec-Bench with a local model, plain and over draft trees, and prints its metrics.

    OMP_WAIT_POLICY=PASSIVE python tools/spec_bench.py --model DIR --questions question.jsonl --out answers

Question by question both ways in turn, greedily; a second turn follows on the own first answer. Outputs are
compared token for token. Answers are written as Spec-Bench's own scripts read them (docs/spec_bench.md).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from retrieval_spec.commands.generate import load_model, open_engine, open_server
from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.errors import InvalidRequest, RetrievalSpecError
from retrieval_spec.step_costs import Plan, StepCostMeter

TASKS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")
WARM_UPS = 3
SEED = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
SEED += "detailed, and polite answers to the user's questions."
"""What stands before a conversation of a model without a chat template, as Vicuna was trained."""

Tokens = list[int]


@dataclass(slots=True)
class Turns:
    """What one way to generate made of a question: an entry for each turn, as Spec-Bench writes them."""

    turns: list[str] = field(default_factory=list)
    decoding_steps: list[int] = field(default_factory=list)
    new_tokens: list[int] = field(default_factory=list)
    wall_time: list[float] = field(default_factory=list)
    accept_lengths: list[int] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        """Of all turns together, the prompts' passes included."""
        return sum(self.new_tokens) / max(sum(self.wall_time), 1e-9)


@dataclass(slots=True)
class Answered:
    """A question, and what became of it both ways."""

    question_id: int
    category: str
    plain: Turns
    drafted: Turns
    is_equal: bool

    @property
    def task(self) -> str:
        """The categories of MT-bench are one task."""
        return self.category if self.category in TASKS else TASKS[0]


class StepLog(StepCostMeter):
    """Notes how many tokens each step decided, as they are streamed between two steps.

    Args:
        learns: whether only nodes that pay are drafted; else as many as there are.
    """

    def __init__(self, learns: bool) -> None:
        super().__init__()
        self._learns = learns
        self.lengths: list[int] = []

    def plan(self, max_nodes: int) -> Plan:
        """Returns how to draft for the next step."""
        return super().plan(max_nodes) if self._learns else Plan(max_nodes, None)

    def observe(self, num_nodes: int, cost: float) -> None:
        """Takes in a finished step, whose tokens come next."""
        super().observe(num_nodes, cost)
        self.lengths.append(0)

    def put(self, tokens: Any) -> None:
        """Counts a token; what comes before the first step is the prompt and the token after it."""
        if self.lengths:
            self.lengths[-1] += 1

    def end(self) -> None:
        """Does nothing: what the host asks of a streamer."""


class Bench:
    """A model with both ways to generate, and the conversations of one question at a time."""

    def __init__(self, model: Any, tokenizer: Any, source: Any, arguments: argparse.Namespace) -> None:
        self._model, self._tokenizer, self._source = model, tokenizer, source
        self._arguments = arguments
        self._log = StepLog(arguments.node_budget == "measured")
        self._window = getattr(model.config, "max_position_embeddings", None) or 1 << 30
        self._options = {
            "do_sample": False,
            "repetition_penalty": arguments.repetition_penalty,
            "pad_token_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        }

    def ask(self, question: dict[str, Any], turn: int, namespace: str) -> Answered | None:
        """Answers a question both ways, the one or the other first by turns; None if it does not fit."""
        ways = [self._plain, lambda prompt, room: self._drafted(prompt, room, namespace)]
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        results: dict[int, tuple[Turns, list[Tokens]]] = {}
        for way in order:
            answered = self._converse(question["turns"], ways[way])
            if answered is None:
                return None
            results[way] = answered
        (plain, plain_ids), (drafted, drafted_ids) = results[0], results[1]
        same = plain_ids == drafted_ids
        return Answered(question["question_id"], question["category"], plain, drafted, same)

    def _converse(
        self, questions: Sequence[str], generate: Callable[[Any, int], tuple[Tokens, list[int]]]
    ) -> tuple[Turns, list[Tokens]] | None:
        made, outputs = Turns(), []
        for number in range(len(questions)):
            prompt = self._prompt(questions[: number + 1], made.turns)
            room = self._window - prompt.shape[1]
            if room < self._arguments.min_room_tokens:
                return None
            began = time.perf_counter()
            ids, lengths = generate(prompt, min(room, self._arguments.max_new_tokens))
            made.wall_time.append(time.perf_counter() - began)
            made.turns.append(self._tokenizer.decode(ids, skip_special_tokens=True).strip())
            made.decoding_steps.append(len(lengths))
            made.new_tokens.append(len(ids))
            made.accept_lengths += lengths
            outputs.append(ids)
        return made, outputs

    def _prompt(self, questions: Sequence[str], answers: Sequence[str]) -> Any:
        """Returns int64[1, n]: the conversation up to the answer that is asked for."""
        tokenizer = self._tokenizer
        if tokenizer.chat_template:
            messages = []
            for number, question in enumerate(questions):
                messages.append({"role": "user", "content": question})
                messages += [{"role": "assistant", "content": answer} for answer in answers[number:][:1]]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            encoded = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        else:
            end = tokenizer.eos_token or ""
            said = [f"{answer}{end}" for answer in answers] + [""]
            parts = [f"USER: {q} ASSISTANT: {a}" for q, a in zip(questions, said, strict=True)]
            encoded = tokenizer(f"{SEED} {''.join(parts)}".rstrip(), return_tensors="pt")
        return encoded.input_ids.to(self._model.device)

    def _plain(self, prompt: Any, room: int) -> tuple[Tokens, list[int]]:
        import torch

        mask = torch.ones_like(prompt)
        output = self._model.generate(prompt, attention_mask=mask, max_new_tokens=room, **self._options)
        ids = output[0, prompt.shape[1] :].tolist()
        return ids, [1] * (len(ids) - 1)

    def _drafted(self, prompt: Any, room: int, namespace: str) -> tuple[Tokens, list[int]]:
        from retrieval_spec.verifier import generate

        self._log.lengths = []
        result = generate(
            self._model,
            prompt,
            self._source,
            max_nodes=self._arguments.max_nodes,
            step_costs=self._log,
            streamer=self._log,
            namespace=namespace,
            max_new_tokens=room,
            **self._options,
        )
        return result.output_ids.tolist(), self._log.lengths


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the metrics; returns 1 if an output differs from the plain one, 2 for bad input."""
    options = parse(arguments)
    try:
        questions = limited(read_questions(options.questions), options.limit_per_task)
        answered, num_left_out = run(options, questions)
    except RetrievalSpecError as error:
        print(f"spec_bench: {error}", file=sys.stderr)
        return 2
    name = options.model_id or Path(options.model).resolve().name
    if options.out:
        write_answers(Path(options.out), name, answered)
    report = {"model": name, "left_out": num_left_out, **report_of(answered)}
    print(json.dumps(report) if options.json else table_of(report))
    return int(report["differing"] > 0)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="a local model folder")
    parser.add_argument("--questions", required=True, metavar="FILE", help="Spec-Bench's question.jsonl")
    parser.add_argument("--server", metavar="ADDRESS", help="draft there; else in this process")
    parser.add_argument("--preset", default="default", help="in this process (default: %(default)s)")
    parser.add_argument("--datastore", action="append", default=[], metavar="DIR", help="in this process")
    parser.add_argument("--limit-per-task", type=int, metavar="N", help="so many questions of each task")
    parser.add_argument("--max-new-tokens", type=int, default=1024, metavar="N", help="of a turn")
    parser.add_argument(
        "--min-room-tokens",
        type=int,
        default=32,
        metavar="N",
        help="leave out questions after which the model's window has less room (default: %(default)s)",
    )
    parser.add_argument("--max-nodes", type=int, default=16, metavar="N", help="nodes of a draft tree")
    parser.add_argument(
        "--node-budget",
        choices=("measured", "full"),
        default="measured",
        help="draft only nodes that pay by the steps' times, or as many as there are",
    )
    parser.add_argument("--apart", action="store_true", help="learn nothing from one question for the next")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="1.0 as the benchmark has it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, metavar="N", help="of torch")
    parser.add_argument("--out", metavar="DIR", help="write the answers here")
    parser.add_argument("--model-id", metavar="NAME", help="in the answers; the folder's name by default")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def read_questions(path: str) -> list[dict[str, Any]]:
    """Returns the questions in file order.

    Raises:
        InvalidRequest: the file cannot be read, or a line is no question.
    """
    try:
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]
        return [
            {"question_id": row["question_id"], "category": str(row["category"]), "turns": [*row["turns"]]}
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(
            f"{path} holds no questions", got=error, expected="question_id, category and turns in each line"
        ) from error


def limited(questions: list[dict[str, Any]], per_task: int | None) -> list[dict[str, Any]]:
    """Returns the first questions of each task; of MT-bench its categories by turns."""
    if per_task is None:
        return questions
    seen: dict[str, int] = {}
    ranked = []
    for place, question in enumerate(questions):
        category = question["category"]
        seen[category] = seen.get(category, 0) + 1
        task = category if category in TASKS else TASKS[0]
        ranked.append((task, seen[category], place, question))
    ranked.sort(key=lambda entry: entry[:3])
    taken = [
        entry for at, entry in enumerate(ranked) if at < per_task or ranked[at - per_task][0] != entry[0]
    ]
    return [question for _, _, _, question in sorted(taken, key=lambda entry: entry[2])]


def run(options: argparse.Namespace, questions: list[dict[str, Any]]) -> tuple[list[Answered], int]:
    """Answers all questions; returns how many did not fit into the model's window, too."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    if not questions:
        raise InvalidRequest("there is no question", got=options.questions)
    model, tokenizer = load_model(options.model)
    model = model.to(device=options.device, dtype=getattr(torch, options.dtype))
    remote = open_server(options.server, options.model) if options.server else None
    source = remote or open_engine(options, int(model.config.vocab_size))
    answered = []
    with closing(source), progress_bar() as progress:
        bench = Bench(model, tokenizer, source, options)
        for turn in range(WARM_UPS):
            bench.ask({**questions[0], "turns": questions[0]["turns"][:1]}, turn, "warm-up")
        progress.start("answering", len(questions), "questions")
        for turn, question in enumerate(questions):
            namespace = f"question-{question['question_id']}" if options.apart else "spec-bench"
            answered.append(bench.ask(question, turn, namespace))
            progress.advance(1)
    fitting = [one for one in answered if one is not None]
    if not fitting:
        raise InvalidRequest("no question fits into the model's window", got=f"{len(questions)} questions")
    return fitting, len(answered) - len(fitting)


def write_answers(folder: Path, name: str, answered: Sequence[Answered]) -> None:
    """Writes both ways as two models' answers."""
    folder.mkdir(parents=True, exist_ok=True)
    for model_id, way in ((f"{name}-vanilla", "plain"), (f"{name}-retrieval_spec", "drafted")):
        lines = [json.dumps(line, ensure_ascii=False) for line in _lines(model_id, way, answered)]
        (folder / f"{model_id}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _lines(model_id: str, way: str, answered: Sequence[Answered]) -> Iterator[dict[str, Any]]:
    for one in answered:
        yield {
            "question_id": one.question_id,
            "category": one.category,
            "answer_id": f"{model_id}-{one.question_id}",
            "model_id": model_id,
            "choices": [{"index": 0, **asdict(getattr(one, way))}],
            "tstamp": time.time(),
        }


def report_of(answered: Sequence[Answered]) -> dict[str, Any]:
    """Returns Spec-Bench's metrics of each task and of all questions."""
    tasks = {task: [one for one in answered if one.task == task] for task in TASKS}
    return {
        "tasks": {task: _metrics(own) for task, own in tasks.items() if own},
        "overall": _metrics(answered),
        "differing": sum(not one.is_equal for one in answered),
    }


def _metrics(answered: Sequence[Answered]) -> dict[str, float]:
    """Returns means over steps and over questions, as the benchmark takes them."""
    lengths = [length for one in answered for length in one.drafted.accept_lengths]
    plain = sum(one.plain.tokens_per_s for one in answered) / len(answered)
    drafted = sum(one.drafted.tokens_per_s for one in answered) / len(answered)
    return {
        "questions": len(answered),
        "new_tokens": sum(sum(one.drafted.new_tokens) for one in answered),
        "mean_accepted_tokens": sum(lengths) / max(len(lengths), 1),
        "tokens_per_s": drafted,
        "baseline_tokens_per_s": plain,
        "speedup": drafted / plain,
    }


def table_of(report: dict[str, Any]) -> str:
    """Returns the report in the benchmark's shape: its figures of each task, then its row of the table."""
    lines = []
    for task, facts in (*report["tasks"].items(), ("overall", report["overall"])):
        lines += [
            f"===== Task: {task} ({facts['questions']} questions, {facts['new_tokens']} tokens) =====",
            f"#Mean accepted tokens: {facts['mean_accepted_tokens']:.2f}",
            f"Tokens per second: {facts['tokens_per_s']:.1f}",
            f"Tokens per second for the baseline: {facts['baseline_tokens_per_s']:.1f}",
            f"Speedup ratio: {facts['speedup']:.2f}",
        ]
    overall = report["overall"]
    row = [f"{report['tasks'][task]['speedup']:.2f}x" if task in report["tasks"] else "-" for task in TASKS]
    row += [f"{overall['mean_accepted_tokens']:.2f}", f"{overall['speedup']:.2f}x"]
    lines += [
        "",
        f"| model | {' | '.join(TASKS)} | #mean accepted tokens | overall |",
        "|---" * (len(TASKS) + 3) + "|",
        f"| {report['model']} | {' | '.join(row)} |",
        "",
        f"outputs that differ from the plain ones: {report['differing']} of {overall['questions']}",
    ]
    left_out = report["left_out"]
    return "\n".join([*lines, f"left out for the model's window: {left_out}"] if left_out else lines)


if __name__ == "__main__":
    sys.exit(main())
