"""Keys as the services make them and texts that only look like keys, drawn by rule.

Written from the services' own descriptions and not from the table of the search.
"""

from __future__ import annotations

import base64
import json
import string
import uuid
from collections.abc import Callable
from random import Random

LOWER, DIGITS = string.ascii_lowercase, string.digits
ALNUM = string.ascii_letters + DIGITS
URL = ALNUM + "-_"
HEX = DIGITS + "abcdef"
SCHEMES = ("https", "postgres", "mongodb+srv", "redis")


def _jwt(random: Random) -> str:
    def part(value: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    body = {"sub": str(random.randrange(10**9)), "name": random.choice(["Ann", "Bo"]), "iat": random.randrange(10**9)}
    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(body)}.{_draw(random, URL, 43)}"


def _private_key(random: Random) -> str:
    lines = [_draw(random, ALNUM + "+/", 64) for _ in range(random.randint(3, 26))]
    kind = random.choice(["RSA ", "", "EC ", "OPENSSH ", "ENCRYPTED "])
    return f"-----BEGIN {kind}PRIVATE KEY-----\n" + "\n".join(lines) + f"\n-----END {kind}PRIVATE KEY-----"


def _discord(random: Random) -> str:
    user = base64.b64encode(str(random.randrange(10**17, 10**18)).encode()).decode().rstrip("=")
    return f"{user}.{_draw(random, URL, 6)}.{_draw(random, URL, 38)}"


def _draw(random: Random, letters: str, size: int) -> str:
    return "".join(random.choice(letters) for _ in range(size))


def _plain(prefix: str, letters: str, size: int, end: str = "") -> Callable[[Random], str]:
    return lambda random: f"{prefix}{_draw(random, letters, size)}{end}"


#: Kind → one key of it.
KEYS: dict[str, Callable[[Random], str]] = {
    "hugging face": _plain("hf_", string.ascii_letters, 34),
    "hugging face organisation": _plain("api_org_", string.ascii_letters, 34),
    "openai": _plain("sk-", ALNUM, 48),
    "openai project": lambda r: f"sk-proj-{_draw(r, URL, 74)}T3BlbkFJ{_draw(r, URL, 74)}",
    "openai service": _plain("sk-svcacct-", URL, 120),
    "anthropic": _plain("sk-ant-api03-", URL, 93, "AA"),
    "openrouter": _plain("sk-or-v1-", HEX, 64),
    "deepseek": _plain("sk-", HEX, 32),
    "groq": _plain("gsk_", ALNUM, 52),
    "xai": _plain("xai-", ALNUM, 80),
    "replicate": _plain("r8_", ALNUM, 37),
    "google": _plain("AIzaSy", URL, 33),
    "aws": lambda r: r.choice(["AKIA", "ASIA"]) + _draw(r, string.ascii_uppercase + "234567", 16),
    "aws secret": lambda r: f"aws_secret_access_key = {_draw(r, ALNUM + '+/', 40)}",
    "github": lambda r: r.choice(["ghp_", "gho_", "ghu_", "ghs_", "ghr_"]) + _draw(r, ALNUM, 36),
    "github fine-grained": lambda r: f"github_pat_{_draw(r, ALNUM, 22)}_{_draw(r, ALNUM, 59)}",
    "gitlab": _plain("glpat-", URL, 20),
    "slack": lambda r: f"xoxb-{_draw(r, DIGITS, 12)}-{_draw(r, DIGITS, 13)}-{_draw(r, ALNUM, 24)}",
    "stripe": lambda r: r.choice(["sk_live_", "rk_live_"]) + _draw(r, ALNUM, r.choice([24, 99])),
    "npm": _plain("npm_", ALNUM, 36),
    "pypi": _plain("pypi-AgEIcHlwaS5vcmcC", URL, 150),
    "json web token": _jwt,
    "bearer": lambda r: f"Authorization: Bearer {_draw(r, ALNUM, 40)}",
    "address": lambda r: f"{r.choice(SCHEMES)}://{_draw(r, LOWER, 6)}:{_draw(r, ALNUM, 14)}@db.acme.io/x",
    "discord": _discord,
    "discord webhook": lambda r: f"https://discord.com/api/webhooks/{_draw(r, DIGITS[1:], 18)}/{_draw(r, URL, 68)}",
    "azure": lambda r: f"AccountName=acme;AccountKey={_draw(r, ALNUM + '+/', 86)}==;EndpointSuffix=core.windows.net",
    "sendgrid": lambda r: f"SG.{_draw(r, URL, 22)}.{_draw(r, URL, 43)}",
    "twilio": _plain("SK", HEX, 32),
    "telegram": lambda r: f"{_draw(r, DIGITS[1:], 10)}:AA{_draw(r, URL, 33)}",
    "digitalocean": _plain("dop_v1_", HEX, 64),
    "private key": _private_key,
    "databricks": _plain("dapi", HEX, 32),
    "postman": lambda r: f"PMAK-{_draw(r, HEX, 24)}-{_draw(r, HEX, 34)}",
    "mistral": lambda r: f"{r.choice(['MISTRAL_API_KEY=', 'mistral api key: '])}{_draw(r, ALNUM, 32)}",
    "cohere": lambda r: f'{{"api_key": "{_draw(r, ALNUM, 40)}"}}',
}

#: Kinds that are told by their own form, wherever they stand; the others by the words around them.
CUT = [kind for kind in KEYS if kind not in ("address", "bearer", "private key", "discord", "telegram")]


def around(random: Random, key: str, cut: bool) -> str:
    """A text with the key in it: glued, quoted, escaped, or with something inside the key."""
    first, last = key[: len(key) // 2], key[len(key) // 2 :]
    ways = [
        f"Use this:\n{key}\nand go on.",
        f"export TOKEN={key}",
        f"the key is\t{key}\tas said",
        f"“{key}”.",
        json.dumps({"text": f"Use this:\n{key}", "n": 1}),
        json.dumps({"inner": json.dumps({"k": f"a\t{key}"})}),
        f"MY_{key}" if key[0].isalpha() else f"_ {key}",
        f"| key | `{key}` |",
    ]
    if cut:
        ways += [f"take {first}\u200b{last} now", f"take {first}\n{last}", f"take {first}\n    {last}\nnow"]
    return random.choice(ways)


_WORDS = (
    "learn", "machine", "travel", "guide", "slovakia", "library", "model", "teacher", "student", "prompt", "answer",
    "token", "matrix", "vector", "graph", "energy", "market", "history", "river", "mountain", "number", "theory",
    "system", "design", "review", "kitchen", "garden", "music",
)  # fmt: skip
_GERMAN = (
    "donau",
    "dampf",
    "schiff",
    "fahrts",
    "gesellschaft",
    "kapitän",
    "rechts",
    "schutz",
    "versicherung",
    "kraft",
)
_FILL_IN = (
    "sk-your-api-key-goes-here", "hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "<your-token>", "$TOKEN",
    "sk-1234567890abcdef1234567890abcdef",
)  # fmt: skip


def _words(random: Random, count: int, between: str = " ") -> str:
    return between.join(random.choice(_WORDS) for _ in range(count))


def _slug(random: Random) -> str:
    return _words(random, random.randint(4, 7), "-")


def _camel(random: Random, count: int) -> str:
    return "".join(random.choice(_WORDS).title() for _ in range(count))


def _number(random: Random) -> int:
    return random.randint(10, 999)


#: Kind → one text that is no secret.
HARMLESS: dict[str, Callable[[Random], str]] = {
    "slug": lambda r: f"See https://example.sk/sk-{_slug(r)}-{r.randint(1990, 2030)} for more.",
    "package": lambda r: f"pip install sk-learn-{_slug(r)} from conda-forge",
    "placeholder": lambda r: f"OPENAI_API_KEY=sk-{r.choice('xX*.') * r.randint(16, 48)}",
    "advice": lambda r: f"export {r.choice(['KEY', 'OPENAI_API_KEY', 'HF_TOKEN'])}={r.choice(_FILL_IN)}",
    "uuid": lambda r: f"task-{uuid.UUID(int=r.getrandbits(128))} took {_number(r)} s",
    "commit": lambda r: f"commit {_draw(r, HEX, 40)}\nMerge: {_draw(r, HEX, 7)} {_draw(r, HEX, 7)}",
    "image": lambda r: f"![](data:image/png;base64,iVBORw0KGgo{_draw(r, ALNUM + '+/', 400)}=)",
    "dna": lambda r: f"ATG{_draw(r, 'ACGT', 300)}",
    "german": lambda r: f"Die {''.join(r.choice(_GERMAN) for _ in range(6)).title()}sordnung gilt.",
    "explanation": lambda r: f"A PEM file begins with -----BEGIN RSA PRIVATE KEY----- and {_words(r, 20)}.",
    "hash in maths": lambda r: f"SHA-256 of {_number(r)} is {_draw(r, HEX, 64)}, so the sum is {_number(r)}.",
    "code": lambda r: f"api_key = os.environ['{_words(r, 2, '_').upper()}_API_KEY']\nclient = {_camel(r, 3)}(api_key)",
    "settings": lambda r: f"access_token_minutes = {_number(r)}\nsecret_key = settings.{_words(r, 4, '_')}",
    "identifier": lambda r: f"hf_{_camel(r, 7)}Configuration and hf_hub_download_{_words(r, 3, '_')}",
    "question": lambda r: f"What is an API key? The {_words(r, 5)} token is secret: {_words(r, 2, '-')}",
    "mail": lambda r: f"Write to {r.choice(_WORDS)}@mail.example or see http://user:password@localhost:8080/",
    "price": lambda r: f"Bearer bonds of {_number(r)},{_number(r)} EUR; basic {_words(r, 3, '-')} rules",
    "latex": lambda r: rf"\text{{hf}}_{{\alpha}} = \frac{{{_number(r)}}}{{x}}, \quad K_{{sk-{_number(r)}}}",
    "emoji": lambda r: f"👨‍👩‍👧 {_slug(r)} ✔️ می‌خواهم {_number(r)}",
    "prose": lambda r: f"The desk-{_slug(r)} and the risk-{_slug(r)} of the task-{_slug(r)}.",
}


def keys(seed: int, count: int) -> list[tuple[str, str]]:
    """Kind and text, the kinds in turns."""
    random = Random(seed)
    kinds = list(KEYS)
    drawn = [(kind, KEYS[kind](random)) for kind in (kinds * (count // len(kinds) + 1))[:count]]
    return [(kind, around(random, key, kind in CUT)) for kind, key in drawn]


def harmless(seed: int, count: int) -> list[tuple[str, str]]:
    """Kind and text, the kinds in turns."""
    random = Random(seed)
    kinds = list(HARMLESS)
    return [(kind, HARMLESS[kind](random)) for kind in (kinds * (count // len(kinds) + 1))[:count]]
