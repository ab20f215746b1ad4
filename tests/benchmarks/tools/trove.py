"""datatrove's inference runner against an endpoint."""

import glob
import gzip
import json

from common import folder, main
from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.writers import JsonlWriter


async def rollout(document, generate):
    made = await generate({"messages": [{"role": "user", "content": document.text}], "max_tokens": 8})
    return {"text": made.text}


def ask_all(url, count, concurrency):
    place = folder()
    config = InferenceConfig(
        server_type="endpoint", model_name_or_path="m", endpoint_url=url, request_timeout=3,
        max_concurrent_generations=concurrency,
    )  # fmt: skip
    documents = [Document(text=f"p{n}", id=str(n)) for n in range(count)]
    runner = InferenceRunner(
        rollout,
        config,
        JsonlWriter(f"{place}/out", "${rank}_${chunk_index}.jsonl.gz"),
        checkpoints_local_dir=f"{place}/checkpoints",
    )
    LocalPipelineExecutor([documents, runner], tasks=1, logging_dir=f"{place}/logs").run()
    answers = []
    for path in glob.glob(f"{place}/out/**/*.jsonl.gz", recursive=True):
        with gzip.open(path, "rt") as lines:
            answers += [json.loads(line)["metadata"]["rollout_results"][0]["text"] for line in lines]
    return [answer for answer in answers if answer]


main(ask_all)
