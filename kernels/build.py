"""`python -m kernels.build`: compile the CPU kernels now, so that the first start finds them ready."""

from __future__ import annotations

from kernels.cpu.library import cpu_status


def main() -> int:
    status = cpu_status()
    if status.native:
        print(f"CPU kernels ready: {status.instruction_set}, {status.threads} threads, {status.path}")
    else:
        print(f"CPU kernels not built, torch will be used: {status.reason}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
