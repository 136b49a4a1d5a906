"""The names of packages that import their modules on first use."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

both_packages = pytest.mark.parametrize("package", ["diffusion", "objectives"])


@both_packages
def test_importing_the_package_does_not_import_torch_and_its_names_resolve(package: str) -> None:
    code = (
        f"import sys, dllm_rl.{package} as package; assert 'torch' not in sys.modules; "
        "names = [n for n in dir(package) if n in package._HOME]; assert names == sorted(package._HOME); "
        "assert all(getattr(package, n).__module__ for n in names if n != 'CORRUPTORS'); assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@both_packages
def test_each_name_is_listed_and_is_that_of_its_module(package: str) -> None:
    names = import_module(f"dllm_rl.{package}")
    for name, module in names._HOME.items():
        assert name in dir(names)
        assert getattr(names, name) is getattr(import_module(f"dllm_rl.{package}.{module}"), name)


@both_packages
def test_an_unknown_name_is_an_attribute_error(package: str) -> None:
    names = import_module(f"dllm_rl.{package}")
    with pytest.raises(AttributeError, match=f"module 'dllm_rl.{package}' has no attribute 'nonsense'"):
        _ = names.nonsense
