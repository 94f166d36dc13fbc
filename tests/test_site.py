"The site's tools: broken links are found, formulas become MathML, README.md says what the home page says."
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import build_readme
import build_site
import check_links

PAGES = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(ROOT).parts))


# ------------------------------------------------------------------ links of the built site


@pytest.fixture
def site(tmp_path):
    "A small site without a fault."
    (tmp_path / "stage").mkdir()
    (tmp_path / "index.html").write_text('<a href="stage/scores.html#scale">x</a> <a href="#top">up</a> <a href="https://example.org/none">out</a> <h1 id="home">Home</h1>')
    (tmp_path / "stage/scores.html").write_text('<h2 id="scale">Scale</h2> <a href="../index.html#home">x</a> <img src="../a%20picture.png"> <a href="/">root</a>')
    (tmp_path / "a picture.png").write_bytes(b"png")
    (tmp_path / "site.css").write_text("@font-face { src: url('font.woff') } b { background: url(data:image/png;base64,xx) }")
    (tmp_path / "font.woff").write_bytes(b"font")
    return tmp_path


def test_a_site_without_a_fault_passes(site):
    assert check_links.check(site) == {} and check_links.main(str(site)) == 0


@pytest.mark.parametrize("link, problem", [
    ('<a href="stage/score.html">', "no such page or file: stage/score.html"),
    ('<a href="stage/scores.html#Scale">', "no such anchor: stage/scores.html#Scale"),
    ('<a href="#nowhere">', "no such anchor: index.html#nowhere"),
    ('<img src="b.png">', "no such page or file: b.png"),
    ('<img srcset="a%20picture.png 1x, c.png 2x">', "no such page or file: c.png"),
    ('<script src="x.js"></script>', "no such page or file: x.js"),
    ('<a href="stage">', "no such page or file: stage/index.html"),
    ('<a href="../up.html">', "no such page or file: ../up.html"),
    ('<a href="file:///srv/x.html">', "a path on one machine: file:///srv/x.html"),
])
def test_a_broken_link_is_found_and_placed(site, link, problem, capsys):
    index = site / "index.html"
    index.write_text(index.read_text() + "\n" + link)
    assert check_links.check(site) == {problem: ["index.html:2"]}
    assert check_links.main(str(site)) == 1 and problem in capsys.readouterr().err


@pytest.mark.parametrize("load", [
    '<link rel="stylesheet" href="https://fonts.example.org/lato.css">', '<link rel="preconnect" href="https://fonts.example.org">', '<script src="//cdn.example.org/x.js"></script>',
    '<img src="http://example.org/a.png">', '<img srcset="a%20picture.png 1x, https://example.org/a.png 2x">', '<iframe src="https://example.org"></iframe>',
    '<style>@import "https://fonts.example.org/lato.css";</style>', '<p style="background: url(https://example.org/a.png)">',
])
def test_a_page_that_loads_from_a_network_is_found(site, load):
    index = site / "index.html"
    index.write_text(index.read_text() + "\n" + load)
    (problem, places), = check_links.check(site).items()
    assert problem.startswith("loaded from a network: ") and places == ["index.html:2"]


@pytest.mark.parametrize("imported", ["url(https://fonts.example.org/css2?family=Lato:wght@0,400;0,700&display=swap)", "url('//fonts.example.org/lato')", '"https://fonts.example.org/lato"'])
def test_web_fonts_are_found_and_taken_out_of_a_theme(site, imported):
    theme = site / "theme.css"
    theme.write_text(f'@charset "UTF-8";@import {imported};@import "site.css";b{{font:url(font.woff)}}')
    (problem, places), = check_links.check(site).items()
    assert problem.startswith("loaded from a network: ") and places == ["theme.css"]
    build_site.nothing_from_a_network(site)
    assert theme.read_text() == '@charset "UTF-8";@import "site.css";b{font:url(font.woff)}' and check_links.check(site) == {}


def test_a_link_that_is_not_loaded_may_lead_out(site):
    (site / "index.html").write_text('<link rel="canonical" href="https://example.org/"><link rel="alternate" href="https://example.org/feed"><a href="https://example.org">x</a>')
    (site / "stage/scores.html").unlink()
    assert check_links.check(site) == {}


def test_a_missing_font_is_found(site):
    (site / "font.woff").unlink()
    assert check_links.check(site) == {"no such page or file: font.woff": ["site.css"]}


def test_an_empty_folder_is_no_site(tmp_path):
    assert check_links.main(str(tmp_path)) == 1


# ------------------------------------------------------------------ what is done to the pages


def test_formulas_become_mathml_and_the_script_goes(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<script defer="" src="https://cdn.jsdelivr.net/npm/katex@0.16.11/dist/katex.min.js"></script><p><span class="math inline">\\(a &lt; \\sqrt{d}\\)</span>'
                    '<span class="math display">\\[\\begin{aligned} a &amp;= b \\\\ c &amp;= d \\end{aligned}\\]</span></p>')
    assert build_site.formulas(page) == []
    text = page.read_text()
    assert text.count("<math") == 2 and "<msqrt>" in text and 'display="block"' in text and "katex" not in text and "\\(" not in text


def test_a_formula_that_is_not_tex_is_reported(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<span class="math inline">\\(\\frac{a}{\\)</span>')
    assert len(build_site.formulas(page)) == 1


def test_headings_go_over_the_code_that_they_name():
    code = {"cell_type": "code", "id": "a", "metadata": {}, "source": ["#| export\n", "def f(): ..."], "outputs": []}
    shown = {"cell_type": "code", "id": "b", "metadata": {}, "has_sd": True, "source": ["#| echo: false\n", "show_doc(f)"], "outputs": []}
    hidden = {"cell_type": "code", "id": "c", "metadata": {}, "source": ["#| hide\n", "1"], "outputs": []}
    notebook = {"cells": [code, shown, hidden]}
    build_site.headings_over_code(notebook)
    assert [c["source"] for c in notebook["cells"]] == ["### f", code["source"]]


def test_links_out_of_the_notebooks_lead_to_the_repository():
    notebook = {"cells": [{"cell_type": "markdown", "source": ["[a](../LICENSE) [b](../toolkit/01_errors.ipynb) [c](https://x.org) [d](../../pyproject.toml#x)"]}]}
    build_site.repository_links(notebook, "stage1_attention")
    made = notebook["cells"][0]["source"]
    assert "(../toolkit/01_errors.ipynb)" in made and "(https://x.org)" in made and f"({build_site.REPOSITORY}/pyproject.toml#x)" in made
    assert "(../LICENSE)" in made, "nbs/LICENSE does not exist, so that link is left for the checker to find"


# ------------------------------------------------------------------ links as JupyterLab and a repository host see them


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_relative_links_of_a_notebook_lead_to_files(page):
    for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "markdown": continue
        text = re.sub(r"```.*?```|`[^`]*`", "", "".join(cell["source"]), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:|#", target): continue
            path = target.split("#")[0]
            assert (page.parent / path).exists(), f"{page.relative_to(ROOT)}: no such file: {target}"
            assert not path.endswith(".html"), f"{page.relative_to(ROOT)}: name the notebook, not its page: {target}"


# ------------------------------------------------------------------ the sidebar and README.md


def hrefs(entries) -> list[str]:
    return [h for e in entries for h in ([e["href"]] if "href" in e else []) + hrefs(e.get("contents", []))]


def test_the_sidebar_holds_every_page_once_in_reading_order():
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    listed = hrefs(config["website"]["sidebar"]["contents"])
    pages = [p.relative_to(ROOT / "nbs").as_posix() for p in PAGES]
    assert sorted(listed) == pages, f"forgotten {set(pages) - set(listed)}, gone {set(listed) - set(pages)}"
    for folder in {p.split("/")[0] for p in pages if "/" in p}:
        order = [p for p in listed if p.startswith(f"{folder}/")]
        assert order == sorted(order), f"{folder}: not in reading order"
    assert (ROOT / "nbs/_quarto.yml").resolve() == ROOT / "_quarto.yml"


def test_readme_is_what_the_home_page_says():
    notebook = json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))
    assert (ROOT / "README.md").read_text(encoding="utf-8") == build_readme.readme(notebook), "make site"


def test_readme_links_lead_to_files_of_the_repository():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:|#", t)]
    assert len(targets) > 5 and any(t.endswith(".png") for t in targets)
    for target in targets: assert (ROOT / target.split("#")[0]).is_file(), target


def test_readme_names_every_command():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"make lab.*\n.*make test", text) and "TORCH_INDEX" in text and "LAB_FLAGS=--no-browser" in text
