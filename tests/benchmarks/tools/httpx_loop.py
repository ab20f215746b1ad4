"""The loop that a person writes with httpx: a semaphore, six attempts."""

import asyncio

import httpx
from common import ATTEMPTS, body, main


async def ask_all(url, count, concurrency):
    gate, answers = asyncio.Semaphore(concurrency), []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=3, limits=limits) as session:

        async def one(n):
            async with gate:
                for attempt in range(ATTEMPTS):
                    try:
                        response = await session.post(f"{url}/v1/chat/completions", json=body(n))
                        response.raise_for_status()
                        answers.append(response.json()["choices"][0]["message"]["content"])
                        return
                    except (httpx.HTTPError, ValueError):
                        await asyncio.sleep(0.1 * 2**attempt)

        await asyncio.gather(*(one(n) for n in range(count)))
    return answers


main(lambda *arguments: asyncio.run(ask_all(*arguments)))
