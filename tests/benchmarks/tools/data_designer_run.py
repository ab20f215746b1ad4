"""NeMo Data Designer."""

import os

import data_designer.config as dd
import pandas as pd
from common import folder, main
from data_designer.interface import DataDesigner

os.environ.update(NEMO_TELEMETRY_ENABLED="false", HF_HUB_OFFLINE="1")


def ask_all(url, count, concurrency):
    provider = dd.ModelProvider(name="bench", endpoint=f"{url}/v1", provider_type="openai", api_key="-")
    asking = dd.ChatCompletionInferenceParams(max_parallel_requests=concurrency, timeout=3, max_tokens=8)
    model = dd.ModelConfig(alias="m", model="m", provider="bench", inference_parameters=asking, skip_health_check=True)
    builder = dd.DataDesignerConfigBuilder([model])
    rows = pd.DataFrame({"question": [f"p{n}" for n in range(count)]})
    builder.with_seed_dataset(dd.DataFrameSeedSource(df=rows))
    builder.add_column(dd.LLMTextColumnConfig(name="answer", prompt="{{ question }}", model_alias="m"))
    designer = DataDesigner(folder(), model_providers=[provider])
    designer.set_run_config(dd.RunConfig(disable_early_shutdown=True, max_in_flight_tasks=2 * concurrency))
    made = designer.create(builder, num_records=count, resume=dd.ResumeMode.IF_POSSIBLE)
    return [answer for answer in made.load_dataset()["answer"] if answer]


main(ask_all)
