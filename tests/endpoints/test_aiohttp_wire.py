"""How answers that come at once are read."""

import asyncio

from persyn_hf.endpoints.aiohttp_wire import _Turns


def rounds_of(count, cancelled=()):
    """The round of the loop in which each of several answers that came at once has its turn."""
    seen = {}

    async def main():
        turns, now = _Turns(), 0

        async def read(n):
            await turns.mine()
            seen[n] = now

        tasks = [asyncio.create_task(read(n)) for n in range(count)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            now += 1
            if now == 1:
                for n in cancelled:
                    tasks[n].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(turns.mine(), 1)  # the next answer has its turn at once

    asyncio.run(main())
    return seen


def test_a_quarter_of_the_answers_that_are_there_are_read_in_a_round():
    seen = rounds_of(9)
    assert list(seen) == list(range(9))  # in the order in which they came
    first = seen[0]
    assert [seen[n] - first for n in range(9)] == [0, 2, 2, 3, 3, 4, 5, 6, 7]


def test_many_answers_are_read_within_few_rounds():
    assert max(rounds_of(512).values()) < 30


def test_an_answer_that_nobody_waits_for_any_more_holds_up_none():
    assert list(rounds_of(9, cancelled=(3, 4, 8))) == [0, 1, 2, 5, 6, 7]
