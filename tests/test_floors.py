"""The house's floors: a module imports only from lower floors, rooms beside each other never."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src/flowmatch"
FLOORS = [
    {"tensors", "randomness", "component", "room", "markdown", "caching", "compiler"},
    {
        "paths",
        "couplings",
        "augmentation",
        "times",
        "solvers",
        "networks",
        "data",
        "metrics",
        "pictures",
    },
    {"flow", "guidance", "losses", "features"},
    {"sampling", "interop", "likelihood", "editing", "tuning", "dealing"},
    {"training"},
    {
        "agreement",
        "config",
        "config_mistakes",
        "facts",
        "evaluation",
        "runs",
        "sketch",
        "resuming",
        "importing",
        "generation",
        "data_likelihood",
        "edits",
        "tuned",
        "look",
        "report",
    },
    {"cli", "__main__"},
]
# in a floor of several stories, what may be imported from within it
WITHIN = {
    "compiler": {"caching"},
    "guidance": {"flow"},
    "likelihood": {"sampling"},
    "editing": {"sampling"},
    "tuning": {"sampling"},
    "data_likelihood": {"config", "evaluation", "runs"},
    "edits": {"config", "facts", "generation", "runs"},
    "tuned": {"config", "evaluation", "facts", "runs"},
    "generation": {"config", "runs", "tuned"},
    "losses": {"flow"},
    "config": {"config_mistakes"},
    "evaluation": {"config"},
    "agreement": {"config"},
    "facts": {"config", "runs"},
    "runs": {"agreement", "config", "evaluation", "sketch"},
    "sketch": {"config"},
    "report": {"config", "evaluation", "runs"},
    "resuming": {"config"},
    "importing": {"config", "runs"},
    "look": {"config", "runs"},
    "__main__": {"cli"},
}


def floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The rooms that a file imports, whether at its top or inside a function."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "flowmatch":
            rooms |= {alias.name for alias in node.names if not alias.name.startswith("__")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flowmatch."):
            rooms.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("flowmatch.")}
    return rooms


def test_every_module_imports_from_lower_floors_only():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = room_of(path)
        if room == "__init__":
            continue
        for other in imports(path) - {room}:
            if floor(other) >= floor(room) and other not in WITHIN.get(room, set()):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not wrong


def test_every_room_has_a_floor():
    rooms = {room_of(p) for p in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms <= set().union(*FLOORS)


def test_files_stay_short():
    long = [p for p in PACKAGE.rglob("*.py") if p.read_text().count("\n") > 330]
    assert not long
