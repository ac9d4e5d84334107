"""Compile the native library while the package is built, and put it into the wheel."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_NATIVE = "nnbackend/engines/native"


def _compiling() -> ModuleType:
    """Return the module of the package that compiles; the package itself needs more than Python."""
    name = "nnbackend_compiling"
    if name not in sys.modules:
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), _NATIVE, "compiling.py")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


class NativeLibraryHook(BuildHookInterface[Any]):
    """Add a shared library for each variant of the processor; without one, say so and go on."""

    def dependencies(self) -> list[str]:
        """Return what printing the formulas needs, and a compiler.

        The compiler comes from PyPI only where the machine has none that works.
        """
        compiling = _compiling()
        compiler = compiling.find_compiler()
        if compiler is None and compiling.zig_target() is None:
            return []
        zig = ["ziglang>=0.13"] if compiler is None or compiler.zig else []
        printing = ("numpy", "array-api-compat")
        return zig + [
            requirement
            for requirement in self.metadata.core.dependencies
            if requirement.startswith(printing)
        ]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile: into the source tree for an editable installation, else for the wheel."""
        compiling = _compiling()
        self._build = tempfile.mkdtemp(prefix="nnbackend-")
        editable = version == "editable"
        folder = os.path.join(self.root, _NATIVE) if editable else self._build
        try:
            compiler = compiling.find_compiler()
            paths = compiling.compile_libraries(folder, compiler=compiler)
        except (compiling.CompilationError, OSError) as error:
            self.app.display_warning(
                f"nnbackend is installed without its native library, and trains slowly: {error}"
            )
            paths = [compiling.write_failure(folder, str(error))]
        else:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{compiling.platform_tag(compiler)}"
        if not editable:
            for path in paths:
                build_data["force_include"][path] = f"{_NATIVE}/{os.path.basename(path)}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was compiled: the wheel has it now."""
        shutil.rmtree(self._build, ignore_errors=True)
