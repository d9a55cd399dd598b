"""The layout of the source: who imports whom, and that no kernel comes without its shader, reference and test."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src" / "shaderfusion"
KERNELS = SOURCE / "kernels"

# A module imports from its own entry and from earlier ones, never from later ones.
ORDER = [
    "errors",
    "arguments",
    "files",
    "progress",
    "output",
    "tensor",
    "images",
    "previews",
    "config_rules",
    "config",
    "random",
    "philox",
    "brownian",
    "seeds",
    "text",
    "prompts",
    "schedulers",
    "metadata",
    "kernels",
    "graph.graph",
    "graph.memory_plan",
    "models",
    "weights.names",
    "weights.other_formats",
    "weights.tiny_vae",
    "weights.ldm_names",
    "weights.checkpoint",
    "weights.renamed",
    "weights.embeddings",
    "weights.footprint",
    "weights.model_files",
    "weights.file_kinds",
    "weights.ldm_config",
    "weights.single_file",
    "weights.other_vae",
    "weights.hub",
    "weights.lora.kinds",
    "weights.lora.merge",
    "weights.lora.names",
    "weights.lora.file",
    "weights.lora.adapters",
    "families",
    "request",
    "denoising",
    "info",
    "gpu",
    "graph.arena",
    "graph.program",
    "weights.slices",
    "weights.prepare",
    "weights.store",
    "networks",
    "engine",
    "run",
    "callbacks",
    "hires",
    "tuning_file",
    "pipeline",
    "bench",
    "tune",
    "verify",
    "batch",
    "making",
    "server",
    "web",
    "cli",
    "__main__",
]
# cli only inside the functions that need it: tests/test_package.py.
GPU_USERS = ["gpu", "graph.arena", "graph.program", "weights.prepare", "weights.store", "networks", "engine"]
GPU_USERS += ["pipeline", "bench", "tuning_file", "tune", "verify", "making", "server", "web", "cli"]
RUNTIME_USERS = ["gpu.backend"]
VERSION_USERS = ["bench", "tuning_file", "tune", "verify", "making", "server", "web", "cli"]


def find_entry(module: str, entries: Iterable[str]) -> str | None:
    """The entry that is the module or a package around it."""
    return next((entry for entry in entries if f"{module}.".startswith(f"{entry}.")), None)


def find_imports(tree: ast.AST) -> Iterator[str]:
    """Every name imported anywhere in a source, dotted: `a` for `import a`, `a.b` for `from a import b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def find_violations(module: str, source: str) -> list[str]:
    """What a module, named from below shaderfusion, does against the rules."""
    tree = ast.parse(source)
    if all(isinstance(node, ast.Expr) for node in tree.body):  # an __init__ that is empty or only a docstring
        return []
    public = [
        node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign) and "__all__" in ast.unparse(node)
    ]
    found = [] if public else ["does not define __all__"]
    own = find_entry(module, ORDER)
    if own is None and module != "":
        return [*found, "is not in ORDER"]
    for name in find_imports(tree):
        package, _, inner = name.partition(".")
        if package == "":
            found.append(f"imports {name}, which is relative")
        elif package in ("wgpu", "wgpudawn") and not find_entry(module, RUNTIME_USERS):
            found.append(f"imports {package}")
        elif package == "shaderfusion" and own:
            entry = find_entry(inner, ORDER)
            if entry is None:
                allowed = inner in ("", "__version__") and own in VERSION_USERS
            else:
                allowed = ORDER.index(entry) <= ORDER.index(own)
                allowed = allowed and (entry != "gpu" or find_entry(module, GPU_USERS) is not None)
                allowed = allowed and (own != "kernels" or entry in ("errors", "tensor", "kernels"))
            if not allowed:
                found.append(f"imports {name}")
    return found


def find_functions(source: str) -> dict[str, ast.FunctionDef]:
    """Functions that a module lists in __all__."""
    tree = ast.parse(source)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return {name: functions[name] for name in ast.literal_eval(node.value) if name in functions}
    return {}


def is_host(function: ast.FunctionDef) -> bool:
    """Whether it makes calls from tensors; a builder that several kernels share takes something else first."""
    first = function.args.args[0].annotation if function.args.args else None
    if first is None or function.returns is None:
        return False
    return ast.unparse(first) == "TensorSpec" and "KernelCall" in ast.unparse(function.returns)


def module_name(file: Path) -> str:
    """`graph.program` for src/shaderfusion/graph/program.py, `graph` for its __init__.py, and "" for the root's."""
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {module_name(file): file for file in sorted(SOURCE.rglob("*.py"))}
KERNEL_FILES = {file.relative_to(KERNELS).with_suffix("").as_posix() for file in KERNELS.glob("*/*.py")}
KERNEL_STEMS = sorted(stem for stem in KERNEL_FILES if not stem.endswith("__init__"))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or "__init__")
def test_module(module: str) -> None:
    assert find_violations(module, MODULES[module].read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "violation"),
    [
        ("errors", "import math", "does not define __all__"),
        ("gpu.buffers", "import wgpu.utils\nx = 1", "does not define __all__"),
        ("newcomer", "__all__ = []\nx = 1", "is not in ORDER"),
        ("models.unet", "__all__ = []\nfrom wgpu import gpu", "imports wgpu"),
        ("gpu.buffers", "__all__ = []\nimport wgpudawn", "imports wgpudawn"),
        (
            "kernels.call",
            "__all__ = []\nfrom shaderfusion.graph.graph import Graph",
            "imports shaderfusion.graph.graph.Graph",
        ),
        ("kernels.call", "__all__ = []\nfrom shaderfusion.config import x", "imports shaderfusion.config.x"),
        (
            "models.unet",
            "__all__ = []\ndef f():\n    import shaderfusion.gpu.device",
            "imports shaderfusion.gpu.device",
        ),
        ("pipeline", "__all__ = []\nfrom shaderfusion import cli", "imports shaderfusion.cli"),
        (
            "models.unet",
            "__all__ = []\nfrom shaderfusion import StableDiffusionPipeline",
            "imports shaderfusion.Stable",
        ),
        ("graph.graph", "__all__ = []\nfrom shaderfusion.graph import program", "imports shaderfusion.graph.program"),
        ("graph.graph", "__all__ = []\nfrom .program import Program", "imports .program.Program, which is relative"),
    ],
)
def test_violations_are_found(module: str, source: str, violation: str) -> None:
    assert any(found.startswith(violation) for found in find_violations(module, source))


@pytest.mark.parametrize("stem", KERNEL_STEMS)
def test_kernel_is_complete(stem: str) -> None:
    folder, name = stem.split("/")
    host = (KERNELS / f"{stem}.py").read_text("utf-8")
    assert (KERNELS / f"{stem}.wgsl").is_file()
    assert (TESTS / "kernels" / folder / f"test_{name}.py").is_file()
    hosts = {name for name, function in find_functions(host).items() if is_host(function)}
    assert hosts
    assert hosts <= set(find_functions((KERNELS / "reference.py").read_text("utf-8")))


def test_the_reference_imports_nothing_from_what_it_specifies() -> None:
    tree = ast.parse((KERNELS / "reference.py").read_text("utf-8"))
    assert not [name for name in find_imports(tree) if name.startswith("shaderfusion")]


def test_every_shader_has_its_host() -> None:
    shaders = {file.relative_to(KERNELS).with_suffix("").as_posix() for file in KERNELS.glob("*/*.wgsl")}
    assert {stem for stem in shaders if not stem.startswith("fragments/")} == set(KERNEL_STEMS)
