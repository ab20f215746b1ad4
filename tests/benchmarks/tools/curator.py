"""bespokelabs-curator."""

import importlib.util
import os

# curator counts tokens with an encoding that tiktoken downloads; litellm, which it brings, has it in a folder.
_LITELLM = os.path.dirname(importlib.util.find_spec("litellm").origin)
os.environ["TIKTOKEN_CACHE_DIR"] = os.path.join(_LITELLM, "litellm_core_utils", "tokenizers")
os.environ.update(CURATOR_DISABLE_RICH_DISPLAY="1", TELEMETRY_ENABLED="0", OPENAI_API_KEY="-")

from bespokelabs import curator  # noqa: E402 - reads the environment when it is imported
from common import folder, main  # noqa: E402


def ask_all(url, count, concurrency):
    os.environ["CURATOR_CACHE_DIR"] = folder()
    settings = {
        "base_url": f"{url}/v1",
        "max_concurrent_requests": concurrency,
        "max_requests_per_minute": 10**7,
        "max_tokens_per_minute": 10**9,
        "max_retries": 6,
        "request_timeout": 3,
        "require_all_responses": False,
    }
    asked = curator.LLM(model_name="m", backend="openai", backend_params=settings, generation_params={"max_tokens": 8})
    made = asked([f"p{n}" for n in range(count)])
    rows = getattr(made, "dataset", made)
    return [row["response"] for row in rows if row["response"]]


main(ask_all)
