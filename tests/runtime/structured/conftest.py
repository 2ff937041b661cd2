import pytest

from onnxport.runtime import Model, load
from support import structured_bundles as made


@pytest.fixture(scope="session")
def writers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Of both kinds a model that writes bytes, and one that answers much like it, to guess for it."""
    found, folder = {}, tmp_path_factory.mktemp("writers")
    for kind in ("causal", "seq2seq"):
        for name, sharpness in (("model", 3.0), ("draft", 2.6)):
            found[f"{kind} {name}"] = load(made.write(folder / kind / name, kind, sharpness), threads=1)
    return found


@pytest.fixture(params=["causal", "seq2seq"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(writers: dict[str, Model], kind: str) -> Model:
    return writers[f"{kind} model"]


@pytest.fixture
def draft(writers: dict[str, Model], kind: str) -> Model:
    return writers[f"{kind} draft"]
