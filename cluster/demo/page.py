"""index.html: every output beside what it was made from.

It needs no script and nothing from the network, only the files beside it: it can be opened
where it lies, and moved with its directory.
"""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from cluster.demo.gateway import Output
from cluster.demo.samples import INPUT_FILES, Sample

PAGE = "index.html"

_HEAD = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>livepeer-ray demo</title>
<style>
  :root { color-scheme: light dark; --line: light-dark(#ddd, #444); --dim: light-dark(#666, #aaa) }
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2.5rem auto; max-width: 76rem;
         padding: 0 1rem }
  h1 { font-size: 1.5rem; margin: 0 }
  h2 { font-size: 1rem; margin: 0 }
  p { margin: .3rem 0 0; color: var(--dim) }
  main { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1.25rem;
         margin-top: 1.75rem }
  section { border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; min-width: 0 }
  header { display: flex; justify-content: space-between; gap: 1rem }
  dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .75rem; margin: .4rem 0 .8rem;
       font-size: .85rem }
  dt, time { color: var(--dim) }
  dd { margin: 0; overflow-wrap: anywhere }
  .pair { display: flex; gap: .6rem; align-items: flex-start }
  .pair > * { flex: 1 1 0; min-width: 0 }
  img, video { width: 100%; max-height: 16rem; object-fit: contain; object-position: left top;
               display: block }
  audio { width: 100% }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; max-height: 14rem;
        overflow: auto; font-size: .8rem }
  .error { color: light-dark(#b00020, #ff8a80) }
</style>
"""


def write_page(directory: Path, outputs: Sequence[Output]) -> Path:
    """Writes the page for outputs that lie in this directory, and returns its path."""
    page = directory / PAGE
    page.write_text(
        f"{_HEAD}<h1>livepeer-ray demo</h1>\n"
        "<p>Each request went through a development orchestrator, the bridge and Ray Serve to a"
        " model on this machine. The models are tiny and their weights are random:"
        " <b>pictures and sounds are noise, texts are gibberish</b>. Everything around them is"
        " real.</p>\n<main>\n" + "".join(map(_section, outputs)) + "</main>\n</html>\n",
        encoding="utf-8",
    )
    return page


def _section(output: Output) -> str:
    sample = output.sample
    took = f"{output.seconds:.2f} s" if output.path else "failed"
    asked = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(_plain(value))}</dd>"
        for name, value in sample.fields.items()
    )
    return (
        f"<section>\n<header><h2>{escape(sample.pipeline)}</h2><time>{took}</time></header>\n"
        f"<dl>{asked}</dl>\n"
        f'<div class="pair">\n{_input(sample)}{_result(output)}</div>\n</section>\n'
    )


def _input(sample: Sample) -> str:
    return _media(INPUT_FILES[sample.file], "input") if sample.file else ""


def _result(output: Output) -> str:
    if output.path is None:
        return f'<pre class="error">{escape(output.error)}</pre>\n'
    if output.path.suffix == ".txt":
        return f"<pre>{escape(output.text)}</pre>\n"
    return _media(output.path.name, "output")


def _media(name: str, what: str) -> str:
    source = escape(name)
    if name.endswith(".png"):
        return f'<a href="{source}"><img src="{source}" alt="{what}"></a>\n'
    if name.endswith(".mp4"):
        return f'<video src="{source}" controls loop muted autoplay></video>\n'
    return f'<audio src="{source}" controls></audio>\n'


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
