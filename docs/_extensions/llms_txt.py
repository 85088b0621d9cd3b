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
        if isinstance(paragraph.parent, nodes.section):
            text = " ".join(paragraph.astext().split())
            return re.split(r"(?<=[.:?]) (?=[A-Z`])", text)[0].rstrip(":")
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
    for page in in_order(env, root):
        title = env.titles[page].astext()
        summary = first_sentence(env.get_doctree(page))
        uri = app.builder.get_target_uri(page)
        lines.append(f"- [{title}]({uri}): {summary}\n")
    (pathlib.Path(app.outdir) / "llms.txt").write_text("".join(lines))


def in_order(env, page):
    """The pages below `page`, as the tables of contents have them."""
    for below in env.toctree_includes.get(page, ()):
        yield below
        yield from in_order(env, below)


def setup(app):
    app.connect("build-finished", write)
    return {"parallel_read_safe": True}
