"""The structure of the sources: rooms that know only those after them, by their doors."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "poncho_package_run"
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))


def module_of(path):
    """Its name below the package: ("place", "lock")."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imports(path):
    """(module, names) of each import of ours in a file, wherever in it, types' imports too."""
    here = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) + 1 - node.level]
            base += tuple((node.module or "").split(".")) if node.module else ()
            for alias in node.names:
                below = (*base, alias.name)
                if below in MODULES:
                    yield below, []
                else:
                    yield base, [alias.name]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            assert not [name for name in names if name.startswith("poncho_package_run")], path


def circle(graph):
    """A list of nodes that lead back to the first; empty if there is none."""
    done = set()

    def visit(node, trail):
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node not in done:
            for other in sorted(graph[node]):
                found = visit(other, [*trail, node])
                if found:
                    return found
            done.add(node)
        return []

    return next(filter(None, (visit(node, []) for node in sorted(graph))), [])


def test_no_module_imports_itself_by_way_of_others():
    graph = {
        name: {other for other, _ in imports(path)} - {name} for name, path in MODULES.items()
    }
    assert ("place", "lock") in graph[("pipeline",)]
    assert circle(graph) == []


def test_no_room_knows_one_that_knows_it():
    graph = {room.name: set() for room in ROOMS}
    for name, path in MODULES.items():
        if len(name) == 2:
            graph[name[0]] |= {other[0] for other, _ in imports(path) if len(other) == 2}
    for room, known in graph.items():
        known.discard(room)
    assert graph["machine"] == graph["telling"] == set() or graph["telling"] == {"machine"}
    assert circle(graph) == []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_says_what_it_promises_and_is_entered_by_its_doors(room):
    tree = ast.parse((room / "__init__.py").read_text())
    text = ast.get_docstring(tree)
    assert all(word in text for word in ("In:", "Out:", "Promised:"))
    doors = next(
        ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)
    )
    used = set()
    for name, path in MODULES.items():
        for other, names in imports(path):
            if other[:1] == (room.name,) != name[:1]:
                assert other[1] in doors, f"{path} knows {other}"
                assert not [each for each in names if each.startswith("_")], f"{path} {names}"
                used.add(other[1])
    assert used == set(doors)
