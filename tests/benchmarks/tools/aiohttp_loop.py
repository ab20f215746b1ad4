"""The loop that a person writes with aiohttp: a semaphore, six attempts."""

import asyncio

import aiohttp
from common import ATTEMPTS, body, main


async def ask_all(url, count, concurrency):
    gate, answers = asyncio.Semaphore(concurrency), []
    timeout = aiohttp.ClientTimeout(total=3)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

        async def one(n):
            async with gate:
                for attempt in range(ATTEMPTS):
                    try:
                        async with session.post(f"{url}/v1/chat/completions", json=body(n)) as response:
                            response.raise_for_status()
                            answers.append((await response.json())["choices"][0]["message"]["content"])
                            return
                    except (aiohttp.ClientError, TimeoutError, ValueError):
                        await asyncio.sleep(0.1 * 2**attempt)

        await asyncio.gather(*(one(n) for n in range(count)))
    return answers


main(lambda *arguments: asyncio.run(ask_all(*arguments)))
