"""`python -m persyn_hf.cli`, for launchers that run a module: `accelerate launch -m persyn_hf.cli …`."""

from persyn_hf.cli import main

main()
