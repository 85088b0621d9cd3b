"""Writes llms.txt: each page with its title and its first sentence."""

import pathlib
import re

from docutils import nodes

HEAD = """# {project}

> {summary}
"""


def first_sentence(doctree):
    """The first sentence of the first paragraph of prose."""
    for paragraph in doctree.findall(nodes.paragraph):
        is_prose = any(paragraph.findall(nodes.Text))
        if is_prose and isinstance(paragraph.parent, nodes.section):
            text = " ".join(paragraph.astext().split())
            return re.split(r"(?<=[.?]) ", text)[0].rstrip(":")
    return ""


def write(app, exception):
    if exception is not None or app.builder.name != "html":
        return
    env = app.env
    root = app.config.root_doc
    lines = [
        HEAD.format(
            project=app.config.project,
            summary=first_sentence(env.get_doctree(root)),
        )
    ]
    for page in env.toctree_includes[root]:
        title = env.titles[page].astext()
        summary = first_sentence(env.get_doctree(page))
        uri = app.builder.get_target_uri(page)
        lines.append(f"- [{title}]({uri})" + f": {summary}" * bool(summary))
    path = pathlib.Path(app.outdir) / "llms.txt"
    path.write_text("\n".join([*lines, ""]))


def setup(app):
    app.connect("build-finished", write)
    return {"parallel_read_safe": True}
