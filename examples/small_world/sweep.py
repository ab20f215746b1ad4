"""One setting at a time, after the comparison: `python -m examples.small_world.sweep`.

The share of learnability, its metric, the router's objective and the probe's size, each with PerSyn alone, one
student size and three seeds. Answers and finished students are shared with the comparison's folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from examples.small_world.run import settings

#: Section, key and the values that are tried; everything else stays as in `compare.yaml`.
SWEEPS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("reward", "alpha", (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
    ("reward", "learnability_metric", ("mean-logprob", "rsr")),
    ("router", "objective", ("bradley-terry", "bradley-terry-margin", "expected-reward", "regression")),
    ("probe", "size", (50, 100, 200, 300, 600)),
)


def main(output_dir: Path, quick: bool) -> None:
    from persyn_hf.cli.app import quiet_libraries
    from persyn_hf.comparison.compare import compare
    from persyn_hf.config import RunConfig

    quiet_libraries(quiet=True)
    page = ["# One setting at a time\n"]
    for section, key, values in SWEEPS:
        page += [f"## {section}.{key}\n", "| value | greedy | sampled | nll | teachers |", "|---|---|---|---|---|"]
        for value in values[:2] if quick else values:
            data = settings(output_dir, quick)
            data[section] = data.get(section, {}) | {key: min(value, 40) if quick and key == "size" else value}
            data["output_dir"] = str(output_dir / "sweeps" / f"{key}-{value}")
            data["compare"] |= {"policies": ["persyn"], "students": data["compare"]["students"][:1]}
            data["compare"]["seeds"] = data["compare"]["seeds"][:3]
            result = compare(RunConfig.from_dict(data, source=f"{key} {value}"), share=output_dir)
            cells = {cell.evaluation: str(cell.value) for cell in result.summary.cells}
            shares = ", ".join(f"{name} {share:.0%}" for name, share in [*result.facts[0].shares.items()][:4])
            page.append(f"| {value} | {cells['greedy']} | {cells['sampled']} | {cells['nll']} | {shares} |")
            print(page[-1], flush=True)
        page.append("")
    (output_dir / "sweeps.md").write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/small_world"))
    parser.add_argument("--quick", action="store_true", help="Every stage, but nobody learns anything.")
    arguments = parser.parse_args()
    main(arguments.output_dir, arguments.quick)
