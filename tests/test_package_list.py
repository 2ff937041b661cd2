"""The list of packages in pyproject.toml is that of the folders, so that a wheel holds every part of the package."""

import tomllib

from support.paths import ROOT


def test_every_folder_of_code_is_a_package_of_the_wheel() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = {name: ROOT / place for name, place in setuptools["package-dir"].items()}
    found = set()
    for name, place in places.items():
        for file in place.rglob("__init__.py"):
            found.add(".".join([name, *file.parent.relative_to(place).parts]))
        folders = {file.parent for file in place.rglob("*.py")}
        assert all((folder / "__init__.py").exists() for folder in folders), f"a folder of {place.name} lacks its __init__.py"
    assert found == set(setuptools["packages"])
