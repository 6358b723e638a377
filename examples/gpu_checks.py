"""Everything that needs a GPU: the tests of tests/gpu, then rates and MFU of a 7B-shaped stack. One process, one GPU.

python examples/gpu_checks.py output=DIR        (make gpu-checks)
"""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from nemo_moslim.cli import hydra_main

ROOT = Path(__file__).resolve().parents[1]


@hydra_main("gpu_checks", path_keys=("output",))
def main(config):
    from nemo_moslim.config import parse
    from nemo_moslim.gpu_checks_config import GPUChecksConfig

    checked = parse(config, GPUChecksConfig)
    import torch

    if not torch.cuda.is_available():
        raise ValueError("no GPU: torch.cuda.is_available() is False; start this on a machine with one")
    return 1 if run_checks(checked) else 0


def run_checks(config) -> bool:
    """Tests and rates, results.json written after the tests and after every row; True if a test or a row failed."""
    from nemo_moslim.run_folder import write_atomically

    output, results, failed = Path(config.output), {}, False
    output.mkdir(parents=True, exist_ok=True)

    def keep(**found):
        results.update(found)
        write_atomically(output / "results.json", json.dumps(results, indent=2) + "\n")

    if config.tests:
        tests = run_tests(output / "tests.xml")
        keep(tests=tests)
        failed = bool(tests.get("error") or tests["failures"] + tests["errors"])
    if config.measure:
        from nemo_moslim.console import quiet_libraries

        quiet_libraries()
        import torch

        from nemo_moslim.evaluation.throughput import as_line, goal_line, goals, measure
        from nemo_moslim.parallel.layout import initialize
        from nemo_moslim.versions import package_versions

        initialize(config.parallel, config.seed)
        keep(device=torch.cuda.get_device_name(), versions=package_versions(), rates=[])
        for row in measure(config):
            keep(rates=[*results["rates"], row], goals=goals([*results["rates"], row]))
            print(as_line(row), flush=True)
            failed = failed or "error" in row
        print("\n".join(map(goal_line, results["goals"])))
    print(f"{output}/results.json")
    return failed


def run_tests(report: Path) -> dict:
    """Run tests/gpu, its output on the terminal; counts of tests, failures, errors, skipped, or why there are none."""
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", str(ROOT / "tests" / "gpu"), "-v", f"--junitxml={report}"]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if not report.is_file():
        reason = f"pytest wrote no report (exit code {code}): is it installed? {sys.executable} -m pip install pytest"
        print(f"error: {reason}", file=sys.stderr)
        return {"error": reason}
    suite = ElementTree.parse(report).getroot().find("testsuite")
    return {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}


if __name__ == "__main__":
    main()
