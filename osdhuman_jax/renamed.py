"""Names that modules of the package had in version 0.1, so that they go on working.

A name of RENAMED can be imported, and called by `python -m`; it gives the very module that has its
place now, so that classes are the same by both names, and one DeprecationWarning that says the new
name. Needed by code that was written for 0.1; nothing in the package uses it. `osdhuman_jax`
installs it when it is imported, after Python's own finders: a module that is there is never hidden.
"""

import sys
import warnings
from collections.abc import Iterable
from importlib import import_module, util
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

PACKAGE = "osdhuman_jax."
RENAMED = {  # below osdhuman_jax, old name to new
    "app": "commands.app",
    "compare": "commands.compare",
    "evaluate": "commands.evaluate",
    "export": "commands.export",
    "label": "commands.label",
    "degrade.__main__": "commands.degrade",
    "weights.__main__": "commands.weights",
    "checkpoint": "training.checkpoint",
    "pipeline": "inference.pipeline",
    "sources": "data.sources",
}


class RenamedFinder(MetaPathFinder):
    """Finds the modules of RENAMED by their old names."""

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # Cheap for all other names, which Python asks for by the thousand.
        new = RENAMED.get(fullname.removeprefix(PACKAGE))
        if new is None or not fullname.startswith(PACKAGE):
            return None
        real = util.find_spec(PACKAGE + new)
        if real is None:
            return None
        return ModuleSpec(fullname, RenamedLoader(real), origin=real.origin)


class RenamedLoader(InspectLoader):
    """Gives the module that is described by the spec `real`, or its code, for another name."""

    def __init__(self, real: ModuleSpec) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        # Frames of the import system do not count: the warning is of the line that imports.
        warnings.warn(_advice(spec.name, self.real.name), DeprecationWarning, stacklevel=2)
        module = import_module(self.real.name)
        self.real = module.__spec__ or self.real
        return module

    def exec_module(self, module: ModuleType) -> None:
        # It ran under its own name; the import system has just given it the spec of the old one.
        module.__spec__ = self.real

    def get_code(self, fullname: str) -> CodeType | None:
        """What `python -m` runs, as the module `__main__`."""
        # Python shows such a warning only where it is of `__main__`.
        text = _advice(fullname, self.real.name)
        warnings.warn_explicit(text, DeprecationWarning, "<command line>", 1, "__main__")
        loader = self.real.loader
        return loader.get_code(self.real.name) if isinstance(loader, InspectLoader) else None

    def get_source(self, fullname: str) -> str | None:
        """The text of the module, for tracebacks and debuggers."""
        loader = self.real.loader
        return loader.get_source(self.real.name) if isinstance(loader, InspectLoader) else None


def _advice(old: str, new: str) -> str:
    old = old.removesuffix(".__main__")
    return f"{old} is now {new}; the old name goes with version 0.3"


def install() -> None:
    """Make the old names known to Python's import system; a second call changes nothing."""
    if not any(isinstance(finder, RenamedFinder) for finder in sys.meta_path):
        sys.meta_path.append(RenamedFinder())
