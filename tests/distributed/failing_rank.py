"""`failing_rank.py MOMENT arguments…` under torchrun: `examples/train_policy.py` whose rank 1 fails in step 2.

The file MOMENT then holds the time (Unix, seconds).
"""

import os
import runpy
import sys
import time
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def main() -> None:
    from nemo_moslim.rollout.collect import Collector

    moment, *arguments = sys.argv[1:]
    sample = Collector.sample

    def failing(self, data, prompts, step):
        if step == 1 and os.environ["RANK"] == "1":
            Path(moment).write_text(str(time.time()))
            raise FloatingPointError("rank 1 fails on purpose")
        return sample(self, data, prompts, step)

    Collector.sample = failing
    sys.argv = ["train_policy.py", *arguments]
    runpy.run_path(str(EXAMPLES / "train_policy.py"), run_name="__main__")


if __name__ == "__main__":
    main()
