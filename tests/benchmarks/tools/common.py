"""What every runner shares: its arguments, the question, and one line of JSON at the end. Standard library only."""

import json
import resource
import sys
import tempfile
import time

ATTEMPTS = 6


def body(n):
    return {"model": "m", "messages": [{"role": "user", "content": f"p{n}"}], "max_tokens": 8}


def folder():
    """Where a tool keeps what it could go on from: the fourth argument, or a new folder."""
    return sys.argv[4] if len(sys.argv) > 4 else tempfile.mkdtemp()


def _cpu():
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in spent)


def main(ask_all):
    url, count, concurrency = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    began, used = time.monotonic(), _cpu()
    answers = ask_all(url, count, concurrency)
    found = {"seconds": time.monotonic() - began, "cpu": _cpu() - used, "answered": sum(map(bool, answers))}
    print("\n" + json.dumps(found))
