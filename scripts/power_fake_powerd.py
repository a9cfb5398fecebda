"""Run `powerd` on fake GPUs: a rehearsal of crashes and of the command line on a machine without a GPU.

    python scripts/power_fake_powerd.py GPU_DIR --socket /tmp/powerd.sock --state-dir /tmp/powerd

GPU_DIR holds the state of the fake GPUs; it is made when absent and outlives the daemon as a driver would.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from power import powerd
from power.fake_nvml import FakeNvml
from power.simulated import simulated_twin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--profile", default="h100-sxm")
    arguments, rest = parser.parse_known_args()
    fake = FakeNvml(simulated_twin(arguments.profile, "llama-3.1-8b"), arguments.directory, count=arguments.gpus)
    with fake.installed():
        return powerd.main(rest)


if __name__ == "__main__":
    sys.exit(main())
