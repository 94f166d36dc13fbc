"""Build the site into _docs: nbdev prepares the notebooks, then Quarto renders them where it is installed, else smalldocs.

The steps before the renderer are those of `nbdev_docs`, which cannot be called where Quarto is missing: it would install it."""
import html
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import build_readme

ROOT = Path(__file__).resolve().parent.parent
CACHE, OUT = ROOT / "_proc", ROOT / "_docs"
CONFIG = ConfigParser(delimiters=["="], interpolation=None)
CONFIG.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = CONFIG["DEFAULT"]
REPOSITORY = f"{SETTINGS['git_url']}/blob/{SETTINGS['branch']}"

LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")  # the target of a Markdown link or picture


def prepare() -> None:
    "Let nbdev write what the renderer reads into _proc, and finish it."
    from nbdev import doclinks
    from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
    from nbdev.serve import proc_nbs

    for folder in CACHE, OUT: shutil.rmtree(folder, ignore_errors=True)
    refresh_quarto_yml()
    doclinks._build_modidx()
    nbdev_sidebar.__wrapped__()
    proc_nbs(force=True, n_workers=min(4, os.cpu_count() or 1))
    shutil.copytree(ROOT / "nbs/images", CACHE / "images", dirs_exist_ok=True)
    math_font(CACHE / "fonts/stix-two-math.woff")
    for page in CACHE.rglob("*.ipynb"):
        notebook = json.loads(page.read_text(encoding="utf-8"))
        repository_links(notebook, page.parent.relative_to(CACHE).as_posix())
        headings_over_code(notebook)
        page.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")


def headings_over_code(notebook: dict) -> None:
    """Put a heading (an anchor, a place in the table of contents) over the code of each definition that is exported.

    nbdev adds a `show_doc` cell after each. Here the code itself is on the page, with its comment for each parameter, so
    that all it gives is the name."""
    hidden = re.compile(r"^#\|\s*(hide|default_exp)\b", re.MULTILINE)
    done = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and hidden.search(source): continue
        name = re.search(r"^show_doc\(([\w.]+)", source, re.MULTILINE) if cell.pop("has_sd", False) else None
        if not name: done.append(cell)
        else: # the code is the last cell so far; several names keep their order
            made = {"cell_type": "markdown", "id": cell["id"], "metadata": {}, "source": f"{'####' if '.' in name[1] else '###'} {name[1]}"}
            done.insert(len(done) - 1, made)
    notebook["cells"] = done


def repository_links(notebook: dict, folder: str) -> None:
    "Links to files outside nbs/ lead to the repository, where those files are; the site holds only pages."

    def rewritten(found: re.Match) -> str:
        target = posixpath.normpath(posixpath.join("nbs", folder, found[2]))
        outside = not re.match(r"[a-z]+:|/|#", found[2]) and not target.startswith("nbs/")
        return f"{found[1]}{REPOSITORY}/{target}{found[3]}" if outside and (ROOT / target).exists() else found[0]

    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown": cell["source"] = LINK.sub(rewritten, "".join(cell["source"]))


def math_font(to: Path) -> None:
    "The part of STIX Two Math that formulas here use, as a web font: without one, browsers draw brackets that do not grow."
    from importlib.util import find_spec

    from fontTools import subset

    font = Path(find_spec("ziamath").origin).parent / "fonts/STIXTwoMath-Regular.ttf"
    options = subset.Options(flavor="woff", layout_features=["*"], glyph_names=False, notdef_outline=True)
    loaded = subset.load_font(str(font), options)
    ranges = [(0x20, 0x17F), (0x2B0, 0x3FF), (0x2000, 0x214F), (0x2190, 0x22FF), (0x2308, 0x230B), (0x23B0, 0x23E1), (0x25A0, 0x25FF), (0x27E6, 0x27EF), (0x1D400, 0x1D7FF)]
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[code for low, high in ranges for code in range(low, high + 1)])
    subsetter.subset(loaded)
    to.parent.mkdir(parents=True, exist_ok=True)
    subset.save_font(loaded, str(to), options)


# ------------------------------------------------------------------ the two renderers


def with_quarto() -> None:
    subprocess.run(["quarto", "render", "--no-cache"], cwd=CACHE, check=True)
    shutil.move(CACHE / OUT.name, OUT)


def with_smalldocs() -> list[str]:
    "Render _proc with smalldocs and mend what it does differently; returns its warnings."
    from smalldocs.config import load
    from smalldocs.site import Page, Site

    class Course(Site):
        "Names a page as Quarto does: by the `output-file` that nbdev gives it, so that `01_scores.ipynb` is `scores.html`."

        def read(self, src) -> Page:
            page = super().read(src)
            if "output-file" in page.front: page.out = page.out.with_name(page.front["output-file"])
            return page

    site = Course(load(CACHE), quiet=True)
    site.build()
    shutil.move(site.out, OUT)
    shutil.copytree(CACHE / "fonts", OUT / "fonts", dirs_exist_ok=True)
    failed = [f"{page.relative_to(OUT)}: {problem}" for page in sorted(OUT.rglob("*.html")) for problem in formulas(page)]
    # Broken links are left to tools/check_links.py, which sees both renderers' pages and anchors too.
    mended = "html-math-method", "format.html.grid", "output-file", "broken link"
    return [warning for warning in site.warnings if not any(word in warning for word in mended)] + failed


def formulas(page: Path) -> list[str]:
    "Turn the TeX that smalldocs leaves to a script from the network into MathML; returns the formulas that are not TeX."
    from math_core import LatexError, LatexToMathML

    converter, problems = LatexToMathML(annotation=True), []

    def mathml(found: re.Match) -> str:
        tex = html.unescape(found[2]).strip()[2:-2].strip()
        try: return converter.convert_with_local_state(tex, displaystyle=found[1] == "display")
        except LatexError as error:
            problems.append(f"the formula {tex!r}: {error}")
            return found[0]

    text = page.read_text(encoding="utf-8")
    text = re.sub(r'<span class="math (inline|display)">(.*?)</span>', mathml, text, flags=re.DOTALL)
    text = re.sub(r'\s*<(?:link|script)[^>]*cdn\.jsdelivr\.net/npm/katex[^>]*>(?:</script>)?', "", text)
    page.write_text(text, encoding="utf-8")
    return problems


def nothing_from_a_network(folder: Path) -> None:
    "Take the web fonts out of the themes: where the reader has no Lato, the next font in its list is one of the system's."
    address = r"(?:https?:)?//"
    imported = re.compile(rf"""@import\s*(?:url\(\s*["']?{address}[^)]*\)|"{address}[^"]*"|'{address}[^']*')[^;]*;""")
    for sheet in folder.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        if imported.search(text): sheet.write_text(imported.sub("", text), encoding="utf-8")


def main() -> int:
    os.chdir(ROOT)
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:nbdev.processors"  # a cell that imports and sets the plot style is no matter
    build_readme.main()
    prepare()
    quarto = shutil.which("quarto")
    problems = [] if quarto else with_smalldocs()
    if quarto: with_quarto()
    nothing_from_a_network(OUT)
    for problem in problems: print(f"site: {problem}", file=sys.stderr)
    print(f"{sum(1 for _ in OUT.rglob('*.html'))} pages in {OUT.name}, rendered by {'Quarto' if quarto else 'smalldocs'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
