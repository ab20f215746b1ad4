"""distilabel."""

from common import folder, main
from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration


def ask_all(url, count, concurrency):
    with Pipeline(name="bench", cache_dir=folder()) as pipeline:
        rows = LoadDataFromDicts(data=[{"instruction": f"p{n}"} for n in range(count)], batch_size=concurrency)
        llm = OpenAILLM(
            model="m",
            base_url=f"{url}/v1",
            api_key="-",
            max_retries=6,
            timeout=3,
            generation_kwargs={"max_new_tokens": 8},
        )
        rows >> TextGeneration(llm=llm, input_batch_size=concurrency)
    made = pipeline.run(use_cache=True)["default"]["train"]
    return [row["generation"] for row in made if row["generation"]]


main(ask_all)
