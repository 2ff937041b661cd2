import pytest

from onnxport import compare


@pytest.mark.parametrize("name", compare.__all__)
def test_every_name_of_the_package_is_found(name: str) -> None:
    assert getattr(compare, name).__name__ == name


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        compare.nothing  # noqa: B018
