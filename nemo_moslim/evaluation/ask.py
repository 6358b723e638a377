"""`generate.py`: a policy answers one prompt, a file of them, or a person."""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from nemo_moslim.config import to_plain
from nemo_moslim.data.rows import check_prompt
from nemo_moslim.data.sources import read_rows
from nemo_moslim.evaluation_config import GenerateConfig
from nemo_moslim.parallel.layout import is_rank_zero, leave_process_group, world_size
from nemo_moslim.parallel.start import start
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.rollout.answer import Answerer, open_answerer
from nemo_moslim.run_folder import write_atomically, write_cost

HELP = """Type a prompt. Levels stay until they are changed:
  /helpfulness 3     ask for this level           /helpfulness      leave the dimension open
  /compare honesty   answer the last prompt at every level
  /again             another answer to the last prompt
  /quit"""


def ask(config: GenerateConfig) -> None:
    """Answer what the configuration names; a session on the terminal where it names nothing.

    Raises:
        ValueError: a row or prompt that cannot be, an unknown dimension or level, a session under torchrun.
    """
    schema = PreferenceSchema.from_dict(to_plain(config.preferences))
    rows = read_questions(config.input, schema) if config.input else None
    preferences, prompt = schema.parse(config.prompt) if config.prompt is not None else ({}, None)
    if config.compare:
        schema.dimension(config.compare)
    if rows is None and prompt is None and world_size() > 1:
        raise ValueError(
            "an interactive session runs on one rank: start it without torchrun, or give prompt= or input="
        )
    start(config.parallel, config.seed, config.cpu_threads)
    answerer = open_answerer(config.policy, config.parallel, config.precision, config.generation)
    if rows is not None:
        started = time.perf_counter()
        texts, _, cut = answerer.answer(rows, schema, config.seed, config.long_prompts, config.input)
        if is_rank_zero():
            write_answers(config.output, rows, texts)
            tell_cut(cut)
            write_cost(config.output, time.perf_counter() - started, world_size(), len(rows))
    elif prompt is not None:
        show(answerer, schema, prompt, variants(preferences, config.compare, schema), config)
    else:
        Session(answerer, schema, config).run()
    leave_process_group()


def read_questions(path: str, schema: PreferenceSchema) -> list[dict]:
    """Rows with `prompt` and, where levels are asked for, `preferences`.

    Raises:
        ValueError: a malformed row; file and line are named.
    """
    rows = []
    for source_row in read_rows(path):
        try:
            if source_row.row is None:
                raise ValueError(str(source_row.error))
            row = dict(source_row.row)
            row["prompt"] = check_prompt(row.get("prompt"))
            row["preferences"] = schema.validate(row.get("preferences") or {})
        except ValueError as error:
            raise ValueError(f"{source_row.file}:{source_row.line}: {error}") from error
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no rows")
    return rows


def write_answers(output: str, rows: list[dict], texts: list[str]) -> None:
    """The rows with `response` added, whole or not at all."""
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({**row, "response": text}, ensure_ascii=False) for row, text in zip(rows, texts, strict=True))
    write_atomically(path, "".join(line + "\n" for line in lines))
    print(f"{len(rows)} answers, written to {output}")


def tell_cut(prompts: int) -> None:
    """A line beside the answers where prompts have lost text."""
    if prompts:
        print(
            f"{prompts} prompts lost their beginning, too long for the policy (long_prompts=cut_left)", file=sys.stderr
        )


def variants(preferences: dict[str, int], compare: str | None, schema: PreferenceSchema) -> list[dict[str, int]]:
    """The preferences, or one variant for each level of the compared dimension."""
    if not compare:
        return [preferences]
    return [{**preferences, compare: level} for level in range(1, schema.dimension(compare).levels + 1)]


def show(
    answerer: Answerer, schema: PreferenceSchema, prompt: str, asked: Iterable[dict[str, int]], config: GenerateConfig
) -> None:
    """Print the answers, each under the tags it was asked with."""
    rows = [{"prompt": prompt, "preferences": preferences} for preferences in asked]
    texts, _, cut = answerer.answer(rows, schema, config.seed, config.long_prompts, "the prompt")
    if not is_rank_zero():
        return
    tell_cut(cut)
    if len(rows) == 1:
        print(texts[0])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("asked", "answer", show_lines=True)
    for row, text in zip(rows, texts, strict=True):
        table.add_row(schema.render(row["preferences"]).strip() or "-", Text(text))
    Console().print(table)


class Session:
    """Reads prompts and commands from the terminal until its end."""

    def __init__(self, answerer: Answerer, schema: PreferenceSchema, config: GenerateConfig):
        self.answerer, self.schema, self.config = answerer, schema, config
        self.levels: dict[str, int] = {}
        self.prompt: str | None = None

    def run(self) -> None:
        """One line after the other; a mistake is told and the session goes on."""
        print(HELP)
        while True:
            try:
                line = input(f"\n{self.schema.render(self.levels)}> ").strip()
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if line == "/quit":
                return
            try:
                self.handle(line)
            except ValueError as error:
                print(f"error: {error}")

    def handle(self, line: str) -> None:
        """A command or a prompt."""
        command, _, argument = line.removeprefix("/").partition(" ")
        if not line.startswith("/"):
            if line:
                typed, self.prompt = self.schema.parse(line)
                self.levels |= typed
                self.answer([self.levels])
        elif command == "compare":
            self.schema.dimension(argument)
            self.answer(variants(self.levels, argument, self.schema))
        elif command == "again":
            self.config.seed += 1
            self.answer([self.levels])
        elif argument:
            dimension, _ = self.schema.parse(f"<{command} {argument}> ")
            self.levels |= dimension
        else:
            self.schema.dimension(command)
            self.levels.pop(command, None)

    def answer(self, asked: list[dict[str, int]]) -> None:
        """Answer the current prompt."""
        if self.prompt is None:
            raise ValueError("type a prompt first")
        show(self.answerer, self.schema, self.prompt, asked, self.config)
