"""Parameters, FLOPs and memory of the models that score, computed without loading weights."""

from __future__ import annotations

from dataclasses import dataclass

from persyn_hf.models.files import ModelFiles
from persyn_hf.models.loading import count_parameters, identity, load_config
from persyn_hf.packages import require

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Scorer:
    """A model that reads answers: the student or the reward model.

    Args:
        role (`str`): `student` or `reward model`.
        model (`str`): Name of the model.
        parameters (`int`): Number of parameters.
        tokens (`float`): Tokens that it reads in the run.
        weight_bytes (`float`): Memory of the weights, in bytes.
        activation_bytes (`float`): Approximate memory of one forward pass at its token budget, in bytes: one layer
            with `8 · hidden + 3 · intermediate` numbers per token.
        dtype (`str`): Type of the weights.
        seconds (`float`, *optional*): Time at this machine's measured speed, in seconds; `None` for a model behind a
            server.
    """

    role: str
    model: str
    parameters: int
    tokens: float
    weight_bytes: float
    activation_bytes: float
    dtype: str = "float32"
    seconds: float | None = None

    @property
    def flops(self) -> float:
        """FLOPs of the forward passes, `2 · parameters · tokens`, without attention."""
        return 2.0 * self.parameters * self.tokens

    @property
    def memory_bytes(self) -> float:
        """Memory of the weights and one forward pass, in bytes."""
        return self.weight_bytes + self.activation_bytes


def describe_scorer(
    role: str, model: str, revision: str | None, dtype: str, tokens: float, token_budget: int
) -> Scorer:
    """Computes size and memory of a model from its configuration.

    Raises:
        ConfigError: If the configuration cannot be read.
    """
    require(f"describe the {role}", "torch", "transformers")
    files = ModelFiles(model, identity(model, revision), f"The {role}")
    config = load_config(files)
    parameters = count_parameters(files, "causal-lm" if role == "student" else "classifier", config)
    text = config.get_text_config()
    kind = _resolved(dtype, text)
    size = BYTES[kind]
    hidden = int(text.hidden_size)
    inner = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    activations = token_budget * (8 * hidden + 3 * inner) * size
    return Scorer(role, model, parameters, tokens, float(parameters * size), float(activations), kind)


def model_size(model: str, revision: str | None, dtype: str) -> tuple[int, str]:
    """Returns the number of parameters of a causal language model and the dtype of its weights, without loading them.

    Raises:
        ConfigError: If the configuration cannot be read.
    """
    files = ModelFiles(model, identity(model, revision), "The teacher")
    config = load_config(files)
    return count_parameters(files, "causal-lm", config), _resolved(dtype, config.get_text_config())


def _resolved(dtype: str, config: object) -> str:
    if dtype != "auto":
        return dtype
    own = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return own if own in BYTES else "float32"
