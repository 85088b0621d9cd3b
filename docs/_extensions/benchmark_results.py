"""Shows the numbers in benchmarks/results, each of which is written once.

Each table there becomes a page, with the machine and the setup that its JSON
names. The role `result` is one number, and the directive `headline` the table
of the first page.
"""

import json
import pathlib

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective
from sphinx.util.docutils import SphinxRole

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

VERSIONS = {
    "backend_version": "{backend} {}",
    "keras": "Keras {}",
    "keras_hub": "KerasHub {}",
    "python": "Python {}",
    "cores": "{} cores",
    "device": "{}",
    "machine": "{}",
    "date": "{}",
}

# The tasks of benchmarks/budgets.py, in words.
TASKS = {
    "pairs": "two texts on the same topic?",
    "topics": "topic of a text",
    "needle256": "topic of one text among others",
    "interleaved": "to which of two texts does a word belong?",
    "spans": "start and end of an answer",
    "tagging": "part of speech of a word",
}
DENSE = "parallel adapters, dense"
ROWS = {
    "CoDA": "CoDA, calibrated and aligned",
    "first half of the text": "first n / 2 tokens",
    "first 3 of 6 layers": "first 3 of 6 layers",
}


def read_table(name):
    """The rows of benchmarks/results/NAME.md as dicts."""
    lines = (RESULTS / f"{name}.md").read_text().splitlines()
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]
    return [dict(zip(header, row)) for row in rows]


def matches(row, conditions):
    return all(
        _plain(row[key]) == _plain(conditions[key]) for key in conditions
    )


def _plain(value):
    try:
        return float(value)
    except ValueError:
        return value


def one_number(name, column, conditions):
    """The cell in `column` of the one row that fits the conditions.

    Raises:
        ValueError: if none or several do.
    """
    rows = [row for row in read_table(name) if matches(row, conditions)]
    if len(rows) != 1 or not rows[0].get(column):
        raise ValueError(
            f"{name}.md should have one row with {conditions} and a number "
            f"in `{column}`. Found: {rows}"
        )
    return rows[0][column]


class ResultRole(SphinxRole):
    """`NAME; column; key=value; ...`: a cell of benchmarks/results/NAME.md."""

    def run(self):
        name, column, *conditions = (
            part.strip() for part in self.text.split(";")
        )
        self.env.note_dependency(RESULTS / f"{name}.md")
        try:
            number = one_number(
                name, column, dict(part.split("=", 1) for part in conditions)
            )
        except (KeyError, OSError, ValueError) as error:
            message = self.inliner.reporter.error(str(error), line=self.lineno)
            return [], [message]
        return [nodes.Text(number)], []


class HeadlineDirective(SphinxDirective):
    """Accuracy and speed of benchmarks/budgets.py, a line for each task."""

    def run(self):
        lines = [
            "| | dense adapters | " + " | ".join(ROWS) + " |",
            "| --- " * (len(ROWS) + 2) + "|",
        ]
        self.env.note_dependency(RESULTS / "budgets.md")
        rows = read_table("budgets")
        for task, words in TASKS.items():
            of_task = [row for row in rows if row["task"] == task]
            cells = [words, _percent(_best_measured(of_task, DENSE))]
            for name in ROWS.values():
                row = _best_measured(of_task, name)
                speed = row and f" at {float(row['speedup']):.1f} times"
                cells.append(_percent(row) + speed if row else "")
            lines.append("| " + " | ".join(cells) + " |")
        node = nodes.container()
        self.state.nested_parse(StringList(lines, source=""), 0, node)
        return node.children


def _best_measured(rows, name):
    """The row of that name with most seeds, of those the first."""
    rows = [row for row in rows if row["row"] == name]
    return max(rows, key=lambda row: int(row["seeds"]), default=None)


def _percent(row):
    return f"{float(row['test']):.1f}%"


def add_heading(app, docname, source):
    """Puts title, machine and setup before a table of results."""
    path = ROOT / f"{docname}.md"
    if path.parent != RESULTS:
        return
    app.env.note_dependency(path.with_suffix(".json"))
    record = json.loads(path.with_suffix(".json").read_text())
    benchmark = path.stem.split("-")[0]
    runs = record.get("timings", [record])
    setups = "\n".join(
        f"Run {number}: {_setup(run)}" if len(runs) > 1 else _setup(run)
        for number, run in enumerate(runs, start=1)
    )
    source[0] = (
        f"# {path.stem}\n\n"
        f"Written by [{benchmark}.py](../{benchmark}.py), which says what is "
        f"measured and how; [all numbers](../README.md) in context, and "
        f"[as JSON]({path.stem}.json).\n\n"
        f"{setups}\n{source[0]}"
    )


def _setup(run):
    """The machine and the setup of a run, in Markdown."""
    versions = ", ".join(
        text.format(run["versions"][key], **run["versions"])
        for key, text in VERSIONS.items()
        if key in run["versions"]
    )
    setup = run.get("setup", {}) | {
        key: value
        for key, value in run.items()
        if isinstance(value, int | float | str)
    }
    items = "".join(f"- {key}: {value}\n" for key, value in setup.items())
    return f"{versions}.\n\n{items}"


def setup(app):
    app.connect("source-read", add_heading)
    app.add_role("result", ResultRole())
    app.add_directive("headline", HeadlineDirective)
    return {"parallel_read_safe": True}
