#!/usr/bin/env python3
"""Checks that every citation of docs/spec in code, tests and documents names a page and a section that is there.

A citation is written `spec: PAGE` §1.2, §3–4, `PAGE` §5: sections and names of defects (D13, X1) belong to the page before them. Links
between Markdown files of the repository must lead to a file, and to a heading of it.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPEC = ROOT / "docs" / "spec"
CITED = re.compile(r"`?spec: ([a-z0-9-]+)`?([^.;:\n]*(?:\.\d[^.;:\n]*)*)")
PAGE_OR_PLACE = re.compile(r"`([a-z0-9]+(?:-[a-z0-9]+)*)`|§\s?(\d+(?:\.\d+)?)(?:[–-](\d+(?:\.\d+)?))?|\b([A-Z]\d{1,2})\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def sections(text):
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        number = re.match(r"(\d+(?:\.\d+)?)\b", heading)
        if number:
            found.add(number.group(1))
    return found


def anchors(text):
    seen = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        seen.add(re.sub(r"\s", "-", re.sub(r"[^\w\- ]", "", plain)))
    return seen


def citations(text):
    """(page, place) of each; place is a section, the name of a defect, or None."""
    for page, rest in CITED.findall(text):
        yield page, None
        for other, first, last, defect in PAGE_OR_PLACE.findall(rest):
            if other:
                if not (SPEC / f"{other}.md").exists():
                    # Another word in code type: what follows is no place of ours.
                    break
                page = other
            for place in filter(None, (first, last, defect)):
                yield page, place


def main():
    pages = {page.stem: page.read_text() for page in SPEC.glob("*.md")}
    known = {name: sections(text) for name, text in pages.items()}
    wrong, count = [], 0
    files = [f for top in ("src", "crates", "tests", "docs", "fuzz") for f in (ROOT / top).rglob("*")
             if f.suffix in (".rs", ".md", ".py") and "target" not in f.parts and f.name != "citations.py"]
    for file in files:
        text = file.read_text(errors="replace")
        name = file.relative_to(ROOT)
        # A comment may break a citation over two lines.
        joined = re.sub(r"\n\s*//[/!]? ?", " ", text) if file.suffix == ".rs" else text
        for page, place in citations(joined) if file.parent != SPEC else []:
            count += 1
            if page not in pages:
                wrong.append(f"{name}: no page docs/spec/{page}.md")
            elif place and place[0].isdigit() and place not in known[page]:
                wrong.append(f"{name}: docs/spec/{page}.md has no section {place}")
            elif place and not place[0].isdigit() and not re.search(rf"\b{place}\b", pages[page]):
                wrong.append(f"{name}: docs/spec/{page}.md says nothing of {place}")
        if file.suffix == ".md":
            wrong += [f"{name}: {problem}" for problem in broken_links(file, text)]
    for file in ROOT.glob("*.md"):
        wrong += [f"{file.name}: {problem}" for problem in broken_links(file, file.read_text())]
    print("\n".join(sorted(set(wrong))), end="\n" if wrong else "")
    print(f"{count} citations, {len(set(wrong))} wrong")
    sys.exit(1 if wrong or not count else 0)


def broken_links(file, text):
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path) if path else file
        if not target.exists():
            yield f"link to {link}: no such file"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text()):
            yield f"link to {link}: no such heading"


if __name__ == "__main__":
    main()
