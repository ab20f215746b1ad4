"""The loop that a person writes with `AsyncInferenceClient`, which never retries."""

import asyncio

import httpx2
from common import main
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError


async def ask_all(url, count, concurrency):
    client, gate, answers = (
        AsyncInferenceClient(base_url=url, api_key="-", timeout=3),
        asyncio.Semaphore(concurrency),
        [],
    )

    async def one(n):
        async with gate:
            try:
                made = await client.chat_completion([{"role": "user", "content": f"p{n}"}], max_tokens=8)
            except (HfHubHTTPError, httpx2.HTTPError, ValueError):
                return
            answers.append(made.choices[0].message.content)

    await asyncio.gather(*(one(n) for n in range(count)))
    return answers


main(lambda *arguments: asyncio.run(ask_all(*arguments)))
