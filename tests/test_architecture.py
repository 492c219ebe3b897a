"""docs/architecture.md is true: its files and names exist, its tree is the README's."""

import ast
import re
from pathlib import Path

REPO = Path(__file__).parents[1]
PAGE = (REPO / "docs" / "architecture.md").read_text()
PLACES = re.findall(r"`([\w/]+\.py): (\w+)`", PAGE)


def test_every_name_is_where_the_page_says():
    assert len(PLACES) > 45
    for file, name in PLACES:
        tree = ast.parse((REPO / file).read_text())
        there = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        for node in tree.body:
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            there |= {t.id for t in targets if isinstance(t, ast.Name)}
        assert name in there, f"{name} is not in {file}"


def test_a_walk_enters_at_most_twelve_files():
    walks = re.split(r"^## ", PAGE, flags=re.M)
    for title in ("A batch", "Noise"):
        (walk,) = (part for part in walks if part.startswith(title))
        files = {file for file, _ in re.findall(r"`([\w/]+\.py): (\w+)`", walk)}
        assert 8 <= len(files) <= 12


def test_the_tree_is_the_readmes_and_names_every_room():
    tree = re.search(r"```\n(ucgm/\n.*?)```", PAGE, re.S)[1]
    assert tree in (REPO / "README.md").read_text()
    rooms = {p.name for p in (REPO / "ucgm").iterdir() if (p / "__init__.py").exists()}
    assert rooms == set(re.findall(r"^  (\w+)/", tree, re.M))
    assert len(rooms) <= 14
