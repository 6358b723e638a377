"""`evaluate.py task=report`: everything found in runs as one HTML file that needs nothing else.

The page carries a content security policy that allows its own style sheet and script by their hashes and nothing
more: no text of an answer can run or fetch anything, even if it got past the template's escaping.
"""

import base64
import datetime
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nemo_moslim.evaluation_config import EvaluateConfig
from nemo_moslim.report.answers import answers_section
from nemo_moslim.report.benchmarks import benchmarks_section
from nemo_moslim.report.blocks import Section, dimensions_of
from nemo_moslim.report.control import control_section
from nemo_moslim.report.find import Found, find
from nemo_moslim.report.judges import judges_section
from nemo_moslim.report.reward import reward_section
from nemo_moslim.report.rivals import rivals_section
from nemo_moslim.report.summary import missing_section, summary_section
from nemo_moslim.report.training import configuration_section, cost_section, training_section
from nemo_moslim.run_folder import write_atomically

TEMPLATES = Path(__file__).parent


def write_report(config: EvaluateConfig) -> None:
    """Report on the folders and files of `runs` in the file `output`.

    Raises:
        ValueError: a missing key, an output that is no HTML file, or as `find`.
    """
    if not config.runs or not config.output:
        raise ValueError("task=report needs runs=[RUN,…] (or folders of a recipe or comparison) and output=FILE.html")
    output = Path(config.output)
    if output.suffix != ".html":
        raise ValueError(f"output={output}: task=report writes one HTML file, name it FILE.html")
    found = find(config.runs)
    title = ", ".join(dict.fromkeys(Path(path).absolute().name for path in config.runs))
    page = html_page(title, report_sections(found))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, page)
    print(f"report: {output} ({len(page.encode()) / 1000:,.0f} kB)")


def report_sections(found: Found) -> list[Section]:
    """The sections that there is something for, in their order on the page."""
    results = [*(c.report for c in found.controls), *(r.content for r in found.rewards)]
    trained = [run.config["preferences"] for run in found.of_kind("reward model")]
    dimensions = list(dict.fromkeys([*dimensions_of(results), *(name for schema in trained for name in schema)]))
    sections = [
        summary_section(found, dimensions),
        control_section(found, dimensions),
        answers_section(found, dimensions),
        reward_section(found, dimensions),
        benchmarks_section(found),
        judges_section(found),
        training_section(found, dimensions),
        rivals_section(found),
        cost_section(found),
        configuration_section(found),
        missing_section(found),
    ]
    return [section for section in sections if section.blocks]


def html_page(title: str, sections: Sequence[Section]) -> str:
    """The page; every text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return environment.get_template("page.html.jinja").render(
        title=title,
        sections=sections,
        style=style,
        script=script,
        style_hash=content_hash(style),
        script_hash=content_hash(script),
        made=datetime.date.today().isoformat(),
    )


def content_hash(text: str) -> str:
    """How a content security policy names an inline style sheet or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
