"""Kinds of secrets: name, pattern and check of each.

The patterns come from the services' documentation and from two open scanners: gitleaks' `config/gitleaks.toml` and
detect-secrets' plugins. Neither is a dependency: gitleaks is not a Python package, and detect-secrets 1.5 has no
patterns for Hugging Face, Groq, xAI, Replicate or Anthropic.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass

from persyn_hf.publishing.randomness import is_placeholder, is_random_text, looks_drawn

_LATIN = "[A-Za-z0-9À-ɏ]"
# Left edge of a prefix that could be the end of a word: no Latin letter or digit before it.
_EDGE = rf"(?<!{_LATIN})"
# Text between a name and its value: `API_KEY=…`, `"api_key": "…"`, `the key is: **…**`, `--api-key …`.
_BETWEEN = r"""[\s"'`*\]})]{0,6}(?::=|=>|==|[:=,]|\bis\b|\bto\b)?[\s"'`*<(\[]{0,6}(?:\bis\b)?[\s"'`*:]{0,4}"""
_NAMED = (
    r"(?:(?:api|access|secret|auth|authentication|private|client|account|service|subscription|bearer|encryption|signing"
    r"|webhook|deploy|bot|app|storage|shared)[\s_.-]{0,2})+(?:keys?|tokens?|secrets?)(?:[\s_.-]?(?:id|value|key|v?\d))?"
)
_BARE = r"(?:token|secret|passwd|password|pwd|apikey|credentials?)"


@dataclass(frozen=True)
class SecretKind:
    """One kind of secret.

    Args:
        name (`str`): Name of the kind, with its article.
        pattern (`re.Pattern`): Pattern, whose group `value` must look random.
        words (`tuple[str, ...]`): Lower-case words, of which every text with such a secret contains one.
        hint (`str`): RE2 pattern that every text with such a secret matches.
        accepts (`Callable`): Function that returns true if the value is a secret.
    """

    name: str
    pattern: re.Pattern[str]
    words: tuple[str, ...]
    hint: str
    accepts: Callable[[str], bool]


def _mixed(value: str) -> bool:
    """Returns true for random text with both letters and digits; for values without a fixed format."""
    return (
        bool(re.search(r"[A-Za-z]", value) and re.search(r"\d", value)) and is_random_text(value) and not _path(value)
    )


def _mixed_no_id(value: str) -> bool:
    """Applies [`_mixed`] except to UUIDs, for names so common that they may precede an id."""
    return _mixed(value) and re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value) is None


def _path(value: str) -> bool:
    return bool(re.match(r"[./~]*/?[a-z]+(/[\w.-]+)+$", value)) or "://" in value


def _not_placeholder(value: str) -> bool:
    return not is_placeholder(value)


def _password(value: str) -> bool:
    """Returns true for the password of a URL, false for usual placeholders."""
    plain = {
        "pass",
        "passwd",
        "pwd",
        "secret",
        "token",
        "postgres",
        "root",
        "admin",
        "user",
        "guest",
        "test",
        "hunter2",
    }
    return len(value) >= 5 and value.lower() not in plain and value[0] not in "$<{[%*" and not is_placeholder(value)


def _basic(value: str) -> bool:
    """Returns true for `name:password` in base64."""
    try:
        return b":" in base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False


def _key_body(value: str) -> bool:
    """Returns true for the body of a private key: enough random base64, after any headers."""
    body = "".join(re.findall(r"[A-Za-z0-9+/=]{12,}", value))
    return len(body) >= 40 and is_random_text(body)


def _kind(
    name: str, pattern: str, words: str, hint: str | None = None, accepts: Callable[[str], bool] = looks_drawn
) -> SecretKind:
    """Builds a kind from words separated by blanks, which are also the default hint."""
    every = words.split()
    found = tuple(word.lower() for word in every)
    return SecretKind(name, re.compile(pattern), found, hint or "|".join(map(re.escape, every)), accepts)


def _prefixed(name: str, prefix: str, body: str, edge: bool = False, hint: str | None = None) -> SecretKind:
    """Builds a kind with a literal prefix; with `edge`, the prefix must not be inside a word."""
    accepts = is_random_text if prefix in ("hf_", "fw_", "jina_") else looks_drawn
    literal = re.escape(prefix)
    start = rf"{literal}(?<!{_LATIN}{literal})" if edge else literal  # a literal start is fast in `re`
    return _kind(name, rf"{start}(?P<value>{body})", prefix, hint, accepts)


_WORD, _URL64 = "[A-Za-z0-9]", "[A-Za-z0-9_-]"

#: All kinds; of two that match the same text, the first counts.
KINDS: tuple[SecretKind, ...] = (
    _prefixed("a Hugging Face token", "hf_", _WORD + "{30,}"),
    _prefixed("a Hugging Face token", "api_org_", _WORD + "{30,}"),
    _prefixed("an Anthropic API key", "sk-ant-", _URL64 + "{24,}", hint="sk-"),
    _prefixed("an OpenRouter API key", "sk-or-", _URL64 + "{32,}", hint="sk-"),
    _prefixed("an OpenAI API key", "sk-proj-", _URL64 + "{24,}", hint="sk-"),
    _prefixed("an OpenAI API key", "sk-svcacct-", _URL64 + "{24,}", hint="sk-"),
    _prefixed("an OpenAI API key", "sk-admin-", _URL64 + "{24,}", hint="sk-"),
    _kind("an API key", rf"sk-(?<!{_LATIN}sk-)(?P<value>{_URL64}{{20,}})", "sk-", None, is_random_text),
    _prefixed("a Groq API key", "gsk_", _WORD + "{40,}"),
    _prefixed("an xAI API key", "xai-", _WORD + "{40,}"),
    _prefixed("a Replicate token", "r8_", _WORD + "{32,}", edge=True),
    _prefixed("a Perplexity API key", "pplx-", _WORD + "{32,}"),
    _prefixed("an NVIDIA API key", "nvapi-", _URL64 + "{40,}"),
    _prefixed("a Fireworks API key", "fw_", _WORD + "{22,}", edge=True),
    _prefixed("a Cerebras API key", "csk-", _WORD + "{32,}"),
    _prefixed("a Together API key", "tgp_v1_", _URL64 + "{32,}"),
    _prefixed("a Jina API key", "jina_", _URL64 + "{40,}"),
    _prefixed("a Pinecone API key", "pcsk_", r"\w{40,}"),
    _kind("a LangSmith API key", r"lsv2_[a-z]{2}_(?P<value>[0-9a-f]{32}_[0-9a-f]{10})", "lsv2_"),
    _prefixed("a Google API key", "AIza", _URL64 + "{35}", edge=True),
    _prefixed("a Google OAuth secret", "GOCSPX-", _URL64 + "{28}"),
    _prefixed("a Google OAuth token", "ya29.", _URL64 + "{30,}"),
    _kind(
        "an AWS access key",
        rf"A(?<!{_LATIN}A)(?:KIA|SIA|BIA|CCA)(?P<value>[0-9A-Z]{{16}})(?![A-Za-z0-9])",
        "AKIA ASIA ABIA ACCA",
        "A(?:KI|SI|BI|CC)A",
        _not_placeholder,
    ),
    _kind(
        "an AWS secret key",
        r"(?i:(?:aws|secret)[\w\s.-]{0,25}key[\w\s.-]{0,10})"
        + _BETWEEN
        + r"(?P<value>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+])",
        "key",
        r"(?i:(?:secret|access|aws)[\s_.-]{0,2}key)",
        _mixed,
    ),
    _kind("a GitHub token", r"gh[pousr]_(?P<value>[A-Za-z0-9]{36,})", "ghp_ gho_ ghu_ ghs_ ghr_", "gh[pousr]_"),
    _prefixed("a GitHub token", "github_pat_", r"\w{40,}"),
    _kind(
        "a GitLab token",
        rf"gl(?:pat|dt|ptt|rt|rtr|cbt|ft|imt|agent|oas|soat|ffct)-(?P<value>{_URL64}{{20,}})",
        "gl",
        "gl(?:pat|dt|ptt|rt|rtr|cbt|ft|imt|agent|oas|soat|ffct)-",
    ),
    _kind("a Slack token", rf"xox[a-z](?:\.xox[a-z])?-(?P<value>{_URL64}{{10,}})", "xox", "xox[abceoprs]"),
    _kind("a Slack token", r"xapp-\d-(?P<value>[A-Za-z0-9-]{20,})", "xapp-"),
    _kind(
        "a Slack webhook",
        r"hooks\.slack\.com/(?:services|workflows|triggers)/(?P<value>[A-Za-z0-9+/]{30,})",
        "hooks.slack.com",
    ),
    _kind(
        "a Stripe key",
        rf"(?:sk|rk|whsec)_(?:live_|test_|prod_)?(?P<value>{_WORD}{{20,}})",
        r"sk_ rk_ whsec_",
        "(?:[sr]k|whsec)_",
    ),
    _prefixed("an npm token", "npm_", _WORD + "{30,}"),
    _prefixed("a PyPI token", "pypi-", _URL64 + "{40,}"),
    _kind("a JSON web token", rf"eyJ(?P<value>{_URL64}{{8,}}\.eyJ{_URL64}{{8,}}\.{_URL64}{{10,}})", "eyJ"),
    _kind(
        "a Discord token",
        rf"{_EDGE}[MNO](?P<value>{_URL64}{{23,27}}\.{_URL64}{{6}}\.{_URL64}{{27,40}})",
        ".",
        rf"\.{_URL64}{{6}}\.[A-Za-z0-9_-]",
    ),
    _kind(
        "a Discord webhook",
        rf"discord(?:app)?\.com/api/(?:v\d+/)?webhooks/\d{{15,21}}/(?P<value>{_URL64}{{50,}})",
        "/webhooks/",
    ),
    _kind("a Telegram token", rf"(?<!\d)\d{{8,11}}:(?P<value>A{_URL64}{{32,35}})", ":a", r"\d:A"),
    _prefixed("a SendGrid key", "SG.", rf"{_URL64}{{16,}}\.{_URL64}{{16,}}", edge=True),
    _kind("a Twilio key", rf"SK(?<!{_LATIN}SK)(?P<value>[0-9a-f]{{32}})(?![A-Za-z0-9])", "sk", "SK[0-9a-f][0-9a-f]"),
    _kind("a DigitalOcean token", r"do[oprt]_v1_(?P<value>[a-f0-9]{40,})", "_v1_", r"do[oprt]_v1_"),
    _kind("a Databricks token", r"dapi(?P<value>[a-f0-9]{32}(?:-\d)?)(?![A-Za-z0-9])", "dapi"),
    _prefixed("a Postman key", "PMAK-", r"[A-Fa-f0-9]{24}-[A-Fa-f0-9]{30,}"),
    _kind(
        "an Azure key",
        r"(?i:(?:account|access|accesssignature|shared)\w{0,12})(?:key)?=(?P<value>[A-Za-z0-9+/]{40,}={0,2})",
        "key= signature=",
        r"(?i:key|signature)=",
    ),
    _kind(
        "an Azure key",
        r"(?<![A-Za-z0-9+/])(?P<value>[A-Za-z0-9+/]{43,76}(?:AzCa|AIoT|ASt)[A-Za-z0-9+/]{4,}={0,2})(?![A-Za-z0-9+/=])",
        "AzCa AIoT ASt",
    ),
    _kind("an Azure client secret", r"(?P<value>[\w~.-]{3}\dQ~[\w~.-]{31,34})", "Q~"),
    _kind("an Azure signature", r"[?&]sig=(?P<value>[A-Za-z0-9%+/]{40,}={0,2})", r"sig="),
    _kind("a Shopify token", r"shp(?:at|ca|pa|ss)_(?P<value>[a-fA-F0-9]{32})", "shpat_ shpca_ shppa_ shpss_"),
    _kind("a Square token", rf"sq0[a-z]{{3}}-(?P<value>{_URL64}{{20,}})", "sq0", "sq0[a-z][a-z][a-z]-"),
    _kind("a Mailchimp key", r"(?<![A-Za-z0-9])(?P<value>[0-9a-f]{32})-us\d{1,2}\b", "-us", r"[0-9a-f]-us\d"),
    _kind("a Mailgun key", r"(?<![A-Za-z0-9])key-(?P<value>[0-9a-f]{32})(?![A-Za-z0-9])", "key-", "key-[0-9a-f]"),
    _kind("a Grafana token", r"gl(?:c|sa)_(?P<value>[A-Za-z0-9+/_]{30,})", "glc_ glsa_"),
    _prefixed("a Docker token", "dckr_pat_", _URL64 + "{20,}"),
    _kind("a HashiCorp token", rf"(?:hv[sb]|atlasv1)\.(?P<value>{_URL64}{{24,}})", "hvs. hvb. atlasv1."),
    _prefixed("a Doppler token", "dp.pt.", _WORD + "{40,}"),
    _prefixed("a Notion token", "ntn_", _WORD + "{40,}", edge=True),
    _prefixed("a Linear key", "lin_api_", _WORD + "{32,}"),
    _prefixed("a Figma token", "figd_", _URL64 + "{30,}"),
    _prefixed("an Atlassian token", "ATATT3", r"[A-Za-z0-9_=-]{60,}"),
    _prefixed("a New Relic key", "NRAK-", "[A-Z0-9]{24,}"),
    _prefixed("a Brevo key", "xkeysib-", r"[a-f0-9]{32,}-?\w*"),
    _prefixed("a Supabase key", "sbp_", "[a-f0-9]{40}"),
    _prefixed("a RubyGems key", "rubygems_", "[a-f0-9]{40,}"),
    _prefixed("an age key", "AGE-SECRET-KEY-1", "[A-Z0-9]{50,}"),
    _prefixed("a Weights & Biases key", "wandb_v1_", r"\w{30,}"),
    _kind(
        "a private key",
        r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?P<value>[^-]{40,})",
        "private",
        "PRIVATE KEY",
        _key_body,
    ),
    _kind(
        "an address with a password",
        r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@\"'<>{}$]{0,100}:(?P<value>[^\s/@\"'<>{}]{5,200})@[\w.\[-]",
        "://",
        r"://[^\s/@:]*:[^\s/@]",
        _password,
    ),
    _kind(
        "a bearer token",
        r"(?i:\bbearer)[\s:\"'`*]{1,6}(?P<value>[A-Za-z0-9._~+/-]{16,}=*)",
        "bearer",
        r"(?i:bearer)[\s:\"'`*\\]",
        _mixed,
    ),
    _kind(
        "a user's name and password",
        r"(?i:\bbasic)\s+(?P<value>[A-Za-z0-9+/]{12,}={0,2})",
        "basic",
        r"(?i:basic)\s+[A-Za-z0-9+/]{5}",
        _basic,
    ),
    _kind(
        "an API key",
        rf"(?i:{_NAMED})" + _BETWEEN + r"(?P<value>[A-Za-z0-9_+/.~-]{16,512}={0,2})",
        "key token secret",
        r"(?i:(?:api|access|secret|auth\w*|private|client|account|service|subscription|bearer|encryption|signing|webhook|deploy|bot|app|storage|shared)[\s_.-]?[\s_.-]?(?:key|token|secret))",
        _mixed,
    ),
    _kind(
        "an API key",
        rf"(?i:(?<![A-Za-z]){_BARE})" + r"[\"'`*\s]{0,3}[:=][\s\"'`*]{0,4}(?P<value>[A-Za-z0-9_+/.~-]{20,512}={0,2})",
        "token secret passw pwd apikey credential",
        rf"(?i:{_BARE})[\"'`*\s\\]*[:=]",
        _mixed_no_id,
    ),
    _kind(
        "an API key",
        r"(?i:cohere|mistral|together|voyage|deepgram|assemblyai|elevenlabs|fireworks|stability)[\w.]{0,24}\W{1,6}"
        r"(?P<value>[A-Za-z0-9]{32,64})(?![A-Za-z0-9])",
        "cohere mistral together voyage deepgram assemblyai elevenlabs fireworks stability",
        r"(?i:cohere|mistral|together|voyage|deepgram|assemblyai|elevenlabs|fireworks|stability)[\w.]*[(\"'=:\s]+[\w]{9}",
        _mixed,
    ),
)
