"""Check every internal link of a built site: its page or file is there, and so is the anchor that it names.

Links to other hosts are not followed, but a page may not load anything from one: no style sheet, script, font or picture.
Usage: python tools/check_links.py FOLDER"""
import re
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

NO_LOADS = {"alternate", "author", "bookmark", "canonical", "help", "home", "license", "me", "next", "prev", "search"}  # <link>s that browsers do not follow by themselves
LINKS = {"a": ["href"], "link": ["href"], "img": ["src", "srcset"], "script": ["src"], "iframe": ["src"], "source": ["src", "srcset"], "video": ["src", "poster"], "audio": ["src"], "embed": ["src"], "object": ["data"]}
IN_STYLE = re.compile(r"""url\(\s*['"]?([^'")]+)['"]?\s*\)|@import\s*['"]([^'"]+)['"]""")


class Page(HTMLParser):
    "The links, the anchors and the styles of one page."

    def __init__(self, text: str):
        super().__init__()
        self.links: list[tuple[int, str, bool]] = []  # line, target, whether the browser loads it with the page
        self.anchors: set[str] = set()
        self.inside = ""  # the tag that was opened last
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given, self.inside = dict(attrs), tag
        loads = tag != "a" and not (tag == "link" and NO_LOADS & set((given.get("rel") or "").lower().split()))
        self.anchors |= {given[k] for k in ("id", "name") if given.get(k)}
        for key in LINKS.get(tag, []):
            value = given.get(key)
            if value is None or (tag == "link" and given.get("rel") == "canonical"): continue
            targets = [part.split()[0] for part in value.split(",") if part.strip()] if key == "srcset" else [value]
            self.links += [(self.getpos()[0], target, loads) for target in targets]
        self.styled(given.get("style") or "")

    def handle_endtag(self, tag): self.inside = ""

    def handle_data(self, data):
        if self.inside == "style": self.styled(data)

    def styled(self, style: str) -> None:
        self.links += [(self.getpos()[0], target, True) for target in loaded_by(style)]


def loaded_by(style: str) -> list[str]:
    "What a style sheet loads."
    return [url or imported for url, imported in IN_STYLE.findall(style)]


def check(site: Path) -> dict[str, list[str]]:
    "What is broken, and the places that link to it."
    site = site.resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    broken = defaultdict(list)
    for path, page in pages.items():
        for line, link, loads in page.links:
            problem = (from_network(link) if loads else None) or broken_link(link, path, site, pages)
            if problem: broken[problem].append(f"{path.relative_to(site)}:{line}")
    for sheet in site.rglob("*.css"):
        for link in loaded_by(sheet.read_text(encoding="utf-8")):
            problem = from_network(link) or broken_link(link, sheet, site, pages)
            if problem: broken[problem].append(f"{sheet.relative_to(site)}")
    return dict(broken)


def from_network(link: str) -> str | None:
    "What is wrong with something that a page loads, or None: it must be part of the site."
    parts = urlsplit(link.strip())
    return f"loaded from a network: {link}" if parts.netloc and parts.scheme in ("", "http", "https", "ws", "wss", "ftp") else None


def broken_link(link: str, source: Path, site: Path, pages: dict[Path, Page]) -> str | None:
    "What is wrong with a link, or None."
    parts = urlsplit(link.strip())
    if parts.scheme or parts.netloc: return "a path on one machine: " + link if parts.scheme == "file" else None
    path = unquote(parts.path)
    target = source if not path else site / path.lstrip("/") if path.startswith("/") else source.parent / path
    target = target.resolve()
    if target.is_dir(): target /= "index.html"
    inside = target == site or site in target.parents
    if not inside or not target.is_file(): return f"no such page or file: {target.relative_to(site) if inside else link}"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors | {"top"}:
        return f"no such anchor: {target.relative_to(site)}#{anchor}"
    return None


def main(folder: str) -> int:
    site = Path(folder)
    if not list(site.rglob("*.html")):
        print(f"{folder}: no page to check", file=sys.stderr)
        return 1
    broken = check(site)
    for problem, places in sorted(broken.items()):
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        print(f"{problem}\n    from {', '.join(places[:3])}{more}", file=sys.stderr)
    print(f"links: {len(broken)} broken" if broken else "links: every page, file and anchor is there")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
